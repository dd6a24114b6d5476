package redisstore

import "hash/maphash"

// keySet remembers keys by their hash. Two of ten million share one in one of
// 300,000 listings.
type keySet struct {
	seed   maphash.Seed
	hashes map[uint64]struct{}
}

func newKeySet() *keySet { return &keySet{maphash.MakeSeed(), make(map[uint64]struct{})} }

// add reports whether key is new.
func (s *keySet) add(key string) bool {
	h := maphash.String(s.seed, key)
	if _, found := s.hashes[h]; found {
		return false
	}
	s.hashes[h] = struct{}{}
	return true
}
