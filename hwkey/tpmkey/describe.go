package tpmkey

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/internal/tpm"
)

// Description is what a TPM says about itself and what this package makes of
// it, for a person who looks for the reason of some trouble.
type Description struct {
	Address      string // as configured
	Manufacturer string // the TCG's vendor id, such as "IFX" or "IBM"
	Vendor       string // the vendor's own words for the model
	Firmware     string // the two halves of the version, "7.85.4555.0" in four 16-bit numbers
	Spec         string // the revision of the TPM 2.0 Library it implements, such as "1.64"

	// Lockout is the protection against guessing passwords. It does not touch
	// Limpet's keys, but a TPM in lockout refuses others.
	Lockout struct {
		Active   bool
		Failures uint32        // counted so far
		Max      uint32        // failures that start the lockout
		Interval time.Duration // in which one failure is forgotten
		AuthSet  bool          // whether resetting it needs a password
	}
	OwnerAuthSet bool // whether the owner hierarchy has a password

	SRK    bool   // whether the shared storage key 0x81000001 is there and usable
	Parent string // the name of the storage key that new keys get, in hex

	Algorithms []hwkey.Algorithm // what the TPM says it can sign with; Create tries
	Keys       int               // key files in the directory
	Foreign    int               // of these, how many were made under another storage key
}

// Describe asks the TPM about itself. On an error the Description has what was
// found before.
func (ks *Keystore) Describe(ctx context.Context) (Description, error) {
	d := Description{Address: ks.conn.Addr}
	err := ks.conn.Do(ctx, func() error { return ks.describe(&d) })
	if err == nil {
		err = ks.describeFiles(&d)
	}
	return d, prefix(err)
}

func (ks *Keystore) describe(d *Description) error {
	p := ks.conn.Properties
	d.Manufacturer = tpm.Text(p[tpm2.TPMPTManufacturer])
	d.Vendor = tpm.Vendor(p)
	v1, v2 := p[tpm2.TPMPTFirmwareVersion1], p[tpm2.TPMPTFirmwareVersion2]
	d.Firmware = fmt.Sprintf("%d.%d.%d.%d", v1>>16, v1&0xffff, v2>>16, v2&0xffff)
	d.Spec = fmt.Sprintf("%d.%02d", p[tpm2.TPMPTRevision]/100, p[tpm2.TPMPTRevision]%100)

	v, err := tpm.Properties(ks.conn, tpm2.TPMPTPermanent)
	if err != nil {
		return tpm.Words("asking the TPM about its state", err)
	}
	permanent := v[tpm2.TPMPTPermanent] // TPMA_PERMANENT, Part 2, 8.6
	d.OwnerAuthSet = permanent&(1<<0) != 0
	d.Lockout.AuthSet = permanent&(1<<2) != 0
	d.Lockout.Active = permanent&(1<<9) != 0
	d.Lockout.Failures = v[tpm2.TPMPTLockoutCounter]
	d.Lockout.Max = v[tpm2.TPMPTMaxAuthFail]
	d.Lockout.Interval = time.Duration(v[tpm2.TPMPTLockoutInterval]) * time.Second

	d.Algorithms = nil
	for _, alg := range []hwkey.Algorithm{hwkey.ECDSAP256, hwkey.RSA2048} {
		parms, _ := parameters(alg)
		_, err := tpm2.TestParms{Parameters: parms}.Execute(ks.conn)
		var rc tpm2.TPMRC
		if err == nil {
			d.Algorithms = append(d.Algorithms, alg)
		} else if !errors.As(err, &rc) {
			return tpm.Words("asking the TPM about its algorithms", err)
		}
	}

	h, err := ks.chooseParent()
	if err != nil {
		return err
	}
	d.SRK = h == tpm.SRKHandle
	return ks.withParent(h, "", in, func(p *parent, _ tpm2.TPMHandle) error {
		d.Parent = hex.EncodeToString(p.name.Buffer)
		return nil
	})
}

func (ks *Keystore) describeFiles(d *Description) error {
	if ks.dirErr != nil {
		return ks.dirErr
	}
	ids, err := ks.dir.IDs()
	if err != nil {
		return fmt.Errorf("listing the keys: %w", err)
	}
	d.Keys = len(ids)
	for _, id := range ids {
		data, err := ks.dir.Read(id)
		if err != nil {
			continue
		}
		if r, err := parseRecord(data); err == nil && r.meta.Parent != "" && r.meta.Parent != d.Parent {
			d.Foreign++
		}
	}
	return nil
}
