package fido

import (
	"bytes"
	"errors"

	"github.com/fxamacker/cbor/v2"
)

// FIDO's canonical CBOR: CTAP 2.1, section 8.
var (
	encoding = must(cbor.CTAP2EncOptions().EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey:       cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels: 4,
		IndefLength:     cbor.IndefLengthForbidden,
		TagsMd:          cbor.TagsForbidden,
		IntDec:          cbor.IntDecConvertSignedOrFail,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // options that do not fit
	}
	return v
}

// encode writes what the token made itself.
func encode(v any) []byte { return must(encoding.Marshal(v)) }

// args are the members of a request's map, and the first thing that was wrong with
// those that were asked for. Maps within it share that.
type args struct {
	members map[any]any
	err     *error
}

// parse reads the map of a request. Only its canonical form is taken, so that encode
// gives the same bytes again.
func parse(data []byte) (*args, error) {
	var v any
	if err := decoding.Unmarshal(data, &v); err != nil {
		var wrong *cbor.UnmarshalTypeError
		var key *cbor.InvalidMapKeyTypeError
		if errors.As(err, &wrong) || errors.As(err, &key) {
			return nil, statusUnexpectedType
		}
		return nil, statusInvalidCBOR
	}
	if !plain(v) {
		return nil, statusUnexpectedType
	}
	if again, err := encoding.Marshal(v); err != nil || !bytes.Equal(again, data) {
		return nil, statusInvalidCBOR
	}
	members, isMap := v.(map[any]any)
	if !isMap {
		return nil, statusUnexpectedType
	}
	return &args{members, new(error)}, nil
}

// plain reports whether v is made of those types alone that CTAP's requests have.
func plain(v any) bool {
	switch v := v.(type) {
	case int64, []byte, string, bool:
		return true
	case []any:
		for _, e := range v {
			if !plain(e) {
				return false
			}
		}
		return true
	case map[any]any:
		for k, e := range v {
			switch k.(type) {
			case int64, string:
			default:
				return false
			}
			if !plain(e) {
				return false
			}
		}
		return true
	}
	return false
}

func (a *args) fail(s status) {
	if *a.err == nil {
		*a.err = s
	}
}

// optional returns a member, and whether it is there.
func optional[T int64 | []byte | string | bool | []any](a *args, key any) (v T, there bool) {
	if i, isInt := key.(int); isInt {
		key = int64(i)
	}
	member, there := a.members[key]
	if !there {
		return v, false
	}
	v, there = member.(T)
	if !there {
		a.fail(statusUnexpectedType)
	}
	return v, there
}

// required returns a member that must be there.
func required[T int64 | []byte | string | bool | []any](a *args, key any) T {
	before := *a.err
	v, there := optional[T](a, key)
	if !there && *a.err == before {
		a.fail(statusMissingParameter)
	}
	return v
}

// within returns a member that is a map. It is empty if it is not there.
func (a *args) within(key any) (_ *args, there bool) {
	if i, isInt := key.(int); isInt {
		key = int64(i)
	}
	member, there := a.members[key]
	members, isMap := member.(map[any]any)
	if there && !isMap {
		a.fail(statusUnexpectedType)
	}
	return &args{members, a.err}, isMap
}

// each calls f for the maps of a member that is an array of maps.
func (a *args) each(list []any, f func(*args)) {
	for _, e := range list {
		members, isMap := e.(map[any]any)
		if !isMap {
			a.fail(statusUnexpectedType)
			return
		}
		f(&args{members, a.err})
	}
}

// requiredWithin is within for a member that must be there.
func (a *args) requiredWithin(key any) *args {
	before := *a.err
	inner, there := a.within(key)
	if !there && *a.err == before {
		a.fail(statusMissingParameter)
	}
	return inner
}
