/* libfido2's reports over a datagram socket, and its answers as they are wanted. */
#include <arpa/inet.h>
#include <fido.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void *io_open(const char *port) {
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int *fd = malloc(sizeof *fd);
	*fd = socket(AF_INET, SOCK_DGRAM, 0);
	return connect(*fd, (void *)&to, sizeof to) == 0 ? fd : NULL;
}

static void io_close(void *h) {
	close(*(int *)h);
	free(h);
}

static int io_read(void *h, unsigned char *b, size_t n, int ms) {
	struct pollfd p = { *(int *)h, POLLIN, 0 };
	return poll(&p, 1, ms) == 1 ? (int)recv(p.fd, b, n, 0) : -1;
}

static int io_write(void *h, const unsigned char *b, size_t n) { /* a report's number is first */
	return send(*(int *)h, b + 1, n - 1, 0) == (ssize_t)n - 1 ? (int)n : -1;
}

#define WANT(want, call) do { int r_ = (call); if (r_ != (want)) { \
	printf("line %d: %s: %s (%#x), want %s\n", __LINE__, #call, fido_strerr(r_), r_, fido_strerr(want)); exit(1); } } while (0)
#define OK(call) WANT(FIDO_OK, call)
#define TRUE(what) do { if (!(what)) { printf("line %d: not so: %s\n", __LINE__, #what); exit(1); } } while (0)

static fido_dev_t *plug(const char *port) {
	fido_dev_io_t io = { io_open, io_close, io_read, io_write };
	fido_dev_t *d = fido_dev_new();
	OK(fido_dev_set_io_functions(d, &io));
	OK(fido_dev_open(d, port));
	return d;
}
