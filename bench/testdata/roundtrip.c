/* What a host with libfido2 waits for: roundtrip PORT OPERATION TIMES prints the mean, in ns. */
#include "../../fido/testdata/datagram.h"
#include <string.h>
#include <time.h>

static const unsigned char hash[32] = "the hash of a client's data", salt[32] = "a salt of hmac-secret";
static const char rp[] = "example.org", pin[] = "2468";

static fido_cred_t *make(fido_dev_t *d, const char *pin, int extensions) {
	fido_cred_t *c = fido_cred_new();
	OK(fido_cred_set_type(c, COSE_ES256));
	OK(fido_cred_set_clientdata_hash(c, hash, sizeof hash));
	OK(fido_cred_set_rp(c, rp, "Example"));
	OK(fido_cred_set_user(c, hash, 1, "alice", NULL, NULL));
	OK(fido_cred_set_extensions(c, extensions));
	OK(fido_dev_make_cred(d, c, pin));
	return c;
}

static void use(fido_dev_t *d, fido_cred_t *c, const char *pin, int extensions) {
	fido_assert_t *a = fido_assert_new();
	OK(fido_assert_set_clientdata_hash(a, hash, sizeof hash));
	OK(fido_assert_set_rp(a, rp));
	OK(fido_assert_allow_cred(a, fido_cred_id_ptr(c), fido_cred_id_len(c)));
	OK(fido_assert_set_extensions(a, extensions));
	if (extensions)
		OK(fido_assert_set_hmac_salt(a, salt, sizeof salt));
	OK(fido_dev_get_assert(d, a, pin));
	fido_assert_free(&a);
}

static long long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
	TRUE(argc == 4);
	const char *op = argv[2];
	int times = atoi(argv[3]);
	fido_init(0);
	fido_dev_t *d = plug(argv[1]);
	if (!fido_dev_has_pin(d))
		OK(fido_dev_set_pin(d, pin, NULL));
	const char *with = strstr(op, "-verified") ? pin : NULL;
	int extensions = strcmp(op, "hmac-secret") == 0 ? FIDO_EXT_HMAC_SECRET : 0;
	fido_cred_t *c = make(d, with, extensions);
	fido_cbor_info_t *info = fido_cbor_info_new();
	long long waited = 0;
	for (int i = 0; i < times; i++) {
		usleep(20000); // people are not so quick that the token has to pace its answers
		long long start = now();
		if (strcmp(op, "info") == 0) {
			OK(fido_dev_get_cbor_info(d, info));
		} else if (strncmp(op, "register", 8) == 0) {
			fido_cred_t *another = make(d, with, 0);
			fido_cred_free(&another);
		} else {
			use(d, c, with, extensions);
		}
		waited += now() - start;
	}
	printf("%lld\n", waited / times);
	fido_dev_close(d);
	return 0;
}
