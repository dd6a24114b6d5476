package tpm

import (
	"encoding/binary"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Properties returns the TPM's properties from first to the end of its group.
func Properties(t transport.TPM, first tpm2.TPMPT) (map[tpm2.TPMPT]uint32, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(first), PropertyCount: 64}.Execute(t)
	if err != nil {
		return nil, err
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return nil, err
	}
	m := make(map[tpm2.TPMPT]uint32)
	for _, p := range list.TPMProperty {
		m[p.Property] = p.Value
	}
	return m, nil
}

// MakerAndModel describes a TPM in a few words.
func MakerAndModel(p map[tpm2.TPMPT]uint32) string {
	words := Text(p[tpm2.TPMPTManufacturer])
	if v := Vendor(p); v != "" {
		words += " " + v
	}
	return words
}

// Vendor returns the vendor's own words for the model.
func Vendor(p map[tpm2.TPMPT]uint32) string {
	var s strings.Builder
	for pt := tpm2.TPMPTVendorString1; pt <= tpm2.TPMPTVendorString4; pt++ {
		s.WriteString(Text(p[pt]))
	}
	return strings.Join(strings.Fields(s.String()), " ") // the four characters are padded
}

// Text returns the printable ones of the four characters in a property.
func Text(v uint32) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(binary.BigEndian.AppendUint32(nil, v)))
}
