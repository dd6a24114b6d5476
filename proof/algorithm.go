package proof

// Algorithm is a kind of key together with the one way it is used.
type Algorithm uint8

const (
	Ed25519      Algorithm = iota + 1 // PureEdDSA (RFC 8032); see PublicKey.Verify for the prehashed variant
	ECDSAP256                         // ECDSA P-256 over SHA-256 (FIPS 186-5)
	RSAPSS                            // RSA 2048 to 4096 bit, PSS with SHA-256 and MGF1-SHA-256, any salt length (RFC 8017)
	RSAPKCS1                          // RSA 2048 to 4096 bit, PKCS #1 v1.5 with SHA-256, where a key can do nothing better
	HMACSHA256                        // HMAC-SHA256 under a key agreed by ECDH P-256
	RSAPSSSHA512                      // RSA 2048 to 4096 bit, PSS with SHA-512 and MGF1-SHA-512
)

// String returns the algorithm's name as logs and records write it.
func (a Algorithm) String() string {
	switch a {
	case Ed25519:
		return "ed25519"
	case ECDSAP256:
		return "ecdsa-p256"
	case RSAPSS:
		return "rsa-pss"
	case RSAPKCS1:
		return "rsa-pkcs1"
	case HMACSHA256:
		return "hmac-sha256"
	case RSAPSSSHA512:
		return "rsa-pss-sha512"
	}
	return "unknown"
}
