/* A host with libfido2, whose reports go over a datagram socket: libfido2 PORT */
#include "datagram.h"
#include <fido/config.h>
#include <fido/credman.h>
#include <fido/es256.h>
#include <string.h>

static const unsigned char hash[32] = "the hash of a client's data";
static const unsigned char salt[32] = "a salt of hmac-secret";

static fido_cred_t *make(fido_dev_t *d, const char *rp, unsigned char user, int rk, int extensions, const char *pin) {
	fido_cred_t *c = fido_cred_new();
	OK(fido_cred_set_type(c, COSE_ES256));
	OK(fido_cred_set_clientdata_hash(c, hash, sizeof hash));
	OK(fido_cred_set_rp(c, rp, "Example"));
	OK(fido_cred_set_user(c, &user, 1, "alice", "Alice", NULL));
	if (rk)
		OK(fido_cred_set_rk(c, FIDO_OPT_TRUE));
	if (extensions)
		OK(fido_cred_set_extensions(c, extensions));
	OK(fido_dev_make_cred(d, c, pin));
	TRUE(fido_cred_x5c_len(c) != 0 || strcmp(fido_cred_fmt(c), "packed") == 0);
	OK(fido_cred_x5c_len(c) ? fido_cred_verify(c) : fido_cred_verify_self(c));
	TRUE(fido_cred_id_len(c) > 0);
	return c;
}

static fido_assert_t *assertion(const char *rp, fido_cred_t *c) {
	fido_assert_t *a = fido_assert_new();
	OK(fido_assert_set_clientdata_hash(a, hash, sizeof hash));
	OK(fido_assert_set_rp(a, rp));
	if (c)
		OK(fido_assert_allow_cred(a, fido_cred_id_ptr(c), fido_cred_id_len(c)));
	return a;
}

static void verify(fido_assert_t *a, size_t i, fido_cred_t *c) {
	es256_pk_t *pk = es256_pk_new();
	OK(es256_pk_from_ptr(pk, fido_cred_pubkey_ptr(c), fido_cred_pubkey_len(c)));
	OK(fido_assert_set_up(a, FIDO_OPT_TRUE));
	OK(fido_assert_verify(a, i, COSE_ES256, pk));
	es256_pk_free(&pk);
}

int main(int argc, char **argv) {
	int n = 0;
	unsigned char first[32];

	TRUE(argc == 2);
	fido_init(getenv("DEBUG") ? FIDO_DEBUG : 0);
	fido_dev_t *d = plug(argv[1]);
	TRUE(fido_dev_is_fido2(d));
	TRUE(fido_dev_supports_pin(d) && !fido_dev_has_pin(d) && fido_dev_supports_credman(d) && fido_dev_supports_cred_prot(d));

	/* Without a PIN. */
	fido_cred_t *plain = make(d, "example.org", 1, 0, 0, NULL);
	fido_assert_t *a = assertion("example.org", plain);
	OK(fido_dev_get_assert(d, a, NULL));
	verify(a, 0, plain);
	fido_assert_free(&a);

	/* The same by U2F, and a credential of U2F by FIDO2. */
	fido_dev_force_u2f(d);
	a = assertion("example.org", plain);
	OK(fido_dev_get_assert(d, a, NULL));
	verify(a, 0, plain);
	fido_assert_free(&a);
	fido_cred_t *u2f = make(d, "example.org", 2, 0, 0, NULL);
	TRUE(strcmp(fido_cred_fmt(u2f), "fido-u2f") == 0);
	fido_dev_close(d);
	fido_dev_free(&d);
	d = plug(argv[1]);
	a = assertion("example.org", u2f);
	OK(fido_dev_get_assert(d, a, NULL));
	verify(a, 0, u2f);
	fido_assert_free(&a);

	/* PIN. */
	OK(fido_dev_set_pin(d, "1234", NULL));
	WANT(FIDO_ERR_PIN_INVALID, fido_dev_set_pin(d, "5678", "0000"));
	OK(fido_dev_get_retry_count(d, &n));
	TRUE(n == 7);
	OK(fido_dev_set_pin(d, "5678", "1234"));
	OK(fido_dev_get_retry_count(d, &n));
	TRUE(n == 8 && fido_dev_has_pin(d));

	/* Discoverable credentials, hmac-secret. */
	fido_cred_t *rk[3];
	for (int i = 0; i < 3; i++)
		rk[i] = make(d, "example.com", i, 1, FIDO_EXT_HMAC_SECRET | FIDO_EXT_LARGEBLOB_KEY, "5678");
	a = assertion("example.com", NULL);
	OK(fido_dev_get_assert(d, a, "5678"));
	TRUE(fido_assert_count(a) == 3);
	for (int i = 0; i < 3; i++) {
		verify(a, i, rk[2 - i]);
		TRUE(fido_assert_user_id_len(a, i) == 1 && *fido_assert_user_id_ptr(a, i) == 2 - i);
	}
	fido_assert_free(&a);
	for (int i = 0; i < 3; i++) {
		a = assertion("example.com", rk[i % 2]);
		OK(fido_assert_set_extensions(a, FIDO_EXT_HMAC_SECRET));
		OK(fido_assert_set_hmac_salt(a, salt, sizeof salt));
		OK(fido_dev_get_assert(d, a, "5678"));
		TRUE(fido_assert_hmac_secret_len(a, 0) == 32);
		if (i == 0)
			memcpy(first, fido_assert_hmac_secret_ptr(a, 0), 32);
		TRUE((memcmp(first, fido_assert_hmac_secret_ptr(a, 0), 32) == 0) == (i % 2 == 0));
		fido_assert_free(&a);
	}
	a = assertion("example.com", rk[0]);
	WANT(FIDO_ERR_PIN_REQUIRED, fido_dev_get_assert(d, a, NULL));
	fido_assert_free(&a);

	/* Large blobs, of several fragments. */
	static unsigned char blob[20000];
	unsigned char *got = NULL;
	size_t len = 0;
	for (size_t i = 0, x = 1; i < sizeof blob; i++)
		blob[i] = (x = x * 6364136223846793005 + 1442695040888963407) >> 56; /* not to be compressed */
	OK(fido_dev_largeblob_set(d, fido_cred_largeblob_key_ptr(rk[0]), 32, blob, sizeof blob, "5678"));
	OK(fido_dev_largeblob_set(d, fido_cred_largeblob_key_ptr(rk[1]), 32, blob, 100, "5678"));
	OK(fido_dev_largeblob_get(d, fido_cred_largeblob_key_ptr(rk[0]), 32, &got, &len));
	TRUE(len == sizeof blob && memcmp(got, blob, len) == 0);
	OK(fido_dev_largeblob_remove(d, fido_cred_largeblob_key_ptr(rk[0]), 32, "5678"));
	WANT(FIDO_ERR_NOTFOUND, fido_dev_largeblob_get(d, fido_cred_largeblob_key_ptr(rk[0]), 32, &got, &len));

	/* Management. */
	fido_credman_metadata_t *meta = fido_credman_metadata_new();
	OK(fido_credman_get_dev_metadata(d, meta, "5678"));
	TRUE(fido_credman_rk_existing(meta) == 3);
	fido_credman_rk_t *list = fido_credman_rk_new();
	OK(fido_credman_get_dev_rk(d, "example.com", list, "5678"));
	TRUE(fido_credman_rk_count(list) == 3);
	OK(fido_credman_del_dev_rk(d, fido_cred_id_ptr(rk[1]), fido_cred_id_len(rk[1]), "5678"));
	OK(fido_credman_get_dev_metadata(d, meta, "5678"));
	TRUE(fido_credman_rk_existing(meta) == 2);

	/* Settings. */
	OK(fido_dev_set_pin_minlen(d, 6, "5678"));
	TRUE(fido_dev_get_assert(d, a = assertion("example.com", rk[0]), "5678") != FIDO_OK);
	OK(fido_dev_set_pin(d, "567890", "5678"));
	OK(fido_dev_toggle_always_uv(d, "567890"));
	WANT(FIDO_ERR_PIN_REQUIRED, fido_dev_get_assert(d, a = assertion("example.org", plain), NULL));
	OK(fido_dev_get_assert(d, a, "567890"));

	OK(fido_dev_reset(d));
	WANT(FIDO_ERR_NO_CREDENTIALS, fido_dev_get_assert(d, assertion("example.org", plain), NULL));
	fido_dev_close(d);
	return 0;
}
