package fido

import "bytes"

// Subcommands of authenticatorConfig: CTAP 2.1, section 6.11.
const (
	configAlwaysUV = 2
	configMinPIN   = 3
)

// configure answers CTAP 2.1, section 6.11.
func (t *Token) configure(x *transaction, a *args) (map[int]any, error) {
	sub := required[int64](a, 1)
	params, _ := a.within(2)
	param, has, protocol, err := t.pinParams(a, 4, 3)
	switch {
	case *a.err != nil:
		return nil, *a.err
	case sub != configAlwaysUV && sub != configMinPIN: // enterprise attestation, too
		return nil, statusInvalidSubcommand
	case t.pinSet && !has:
		return nil, statusPINRequired
	case err != nil:
		return nil, err
	}
	if t.pinSet {
		message := append(bytes.Repeat([]byte{0xff}, 32), cmdConfig, byte(sub))
		if params.members != nil {
			message = append(message, encode(params.members)...)
		}
		if err := t.authorize(protocol, param, message, mayConfigure); err != nil {
			return nil, err
		}
	}
	next := t.state
	if sub == configAlwaysUV {
		next.AlwaysUV = !next.AlwaysUV
		return nil, t.save(x.ctx, next)
	}
	length, hasLength := optional[int64](params, 1)
	list, hasList := optional[[]any](params, 2)
	force, _ := optional[bool](params, 3)
	var rps []string
	for _, e := range list {
		rp, isText := e.(string)
		if !isText {
			return nil, statusUnexpectedType
		}
		rps = append(rps, rp)
	}
	switch {
	case *a.err != nil:
		return nil, *a.err
	case hasLength && (length < int64(t.state.minPIN()) || length > maxPIN):
		return nil, statusPINPolicy
	case force && !t.pinSet:
		return nil, statusPINNotSet
	case len(rps) > maxMinPINRPs:
		return nil, statusKeyStoreFull
	}
	if hasLength {
		next.MinPIN = int(length)
	}
	if hasList {
		next.MinPINRPs = rps
	}
	if force || t.pinSet && next.PINLength < next.minPIN() {
		next.ForceChange = true
		t.endSession()
		t.letGo()
	}
	return nil, t.save(x.ctx, next)
}
