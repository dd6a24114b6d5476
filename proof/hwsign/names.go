package hwsign

import (
	"strings"

	"github.com/limpet-auth/limpet/proof"
)

// Names are the header names of one spelling of the wire, in the canonical
// form of net/http.
type Names struct {
	DeviceKey       string // P-hw-pub: device key, at login
	DeviceKeyType   string // P-hw-pub-type
	DeviceKeyLevel  string // P-hw-level: Limpet's addition, "hardware" or "software"; others ignore it
	EphemeralKey    string // P-accel-pub: an ephemeral key; in an answer the server's half of the agreement
	EphemeralType   string // P-accel-pub-type
	EphemeralSig    string // P-accel-pub-sig: the device key's signature over the text of P-accel-pub
	EphemeralID     string // P-accel-pub-id: names a known ephemeral key
	EphemeralExpire string // P-accel-pub-expire: end of the lease in unix seconds, in an answer
	Data            string // P-data: the value that is signed
	DataSig         string // P-data-sig
}

// The two prefixes that clients use. A request is answered in its own.
var (
	BoundToken = names("X-Rpc-Sec-Bound-Token-")
	DBCS       = names("X-Rpc-Sec-Dbcs-") // older
)

func names(prefix string) Names {
	return Names{
		DeviceKey:       prefix + "Hw-Pub",
		DeviceKeyType:   prefix + "Hw-Pub-Type",
		DeviceKeyLevel:  prefix + "Hw-Level",
		EphemeralKey:    prefix + "Accel-Pub",
		EphemeralType:   prefix + "Accel-Pub-Type",
		EphemeralSig:    prefix + "Accel-Pub-Sig",
		EphemeralID:     prefix + "Accel-Pub-Id",
		EphemeralExpire: prefix + "Accel-Pub-Expire",
		Data:            prefix + "Data",
		DataSig:         prefix + "Data-Sig",
	}
}

// All returns every name, requests' and answers'.
func (n Names) All() []string {
	return []string{
		n.DeviceKey, n.DeviceKeyType, n.DeviceKeyLevel, n.EphemeralKey, n.EphemeralType,
		n.EphemeralSig, n.EphemeralID, n.EphemeralExpire, n.Data, n.DataSig,
	}
}

// dialect is the part of the wire on which clients differ; the ephemeral key's
// type name tells which one a client speaks.
type dialect struct {
	alg     proof.Algorithm
	proofBy proof.Signer // who signs P-data in an introduction
	spki    bool         // the server's P-accel-pub is SPKI DER rather than the bare point
}

// dialects by lower-case type name.
var dialects = map[string]dialect{
	TypeEd25519:    {alg: proof.Ed25519},
	"ecdsa":        {alg: proof.ECDSAP256},
	TypeECDSA:      {alg: proof.ECDSAP256},
	"rsa-pss":      {alg: proof.RSAPSS},
	"rsa-2048-pss": {alg: proof.RSAPSS},
	TypeRSA:        {alg: proof.RSAPSS},
	TypeRSAPKCS1:   {alg: proof.RSAPKCS1},
	TypeECDHShort:  {alg: proof.HMACSHA256, proofBy: proof.ByDeviceOrEphemeral},
	TypeECDHLong:   {alg: proof.HMACSHA256, spki: true},
}

// Type names that Limpet's own client sends.
const (
	TypeEd25519   = "ed25519"
	TypeECDSA     = "ecdsa-p256"
	TypeRSA       = "rsa-2048"
	TypeRSAPKCS1  = "rsa-2048-pkcs1"
	TypeECDHShort = "ecdh"      // browser, Apple, Android, Windows app: the device key signs the introduction's value
	TypeECDHLong  = "ecdh-p256" // C++ and Python clients, newest server: the ephemeral key signs it
)

func dialectOf(typeName string) (dialect, bool) {
	d, ok := dialects[strings.ToLower(typeName)]
	return d, ok
}
