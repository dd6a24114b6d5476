package memstore

import (
	"encoding/binary"
	"sync"
	"time"
)

// shard keeps records one after the other in pages that are only ever appended
// to, and an index without pointers, so that the garbage collector has next to
// nothing to do with any number of records. What Get returned stays as it was:
// a page that is left behind goes when nobody holds a part of it.
//
// A record is: key size 2 | value size 4 | key | value
type shard struct {
	mu    sync.RWMutex
	index map[uint64]place // by the keyed hash of the key
	pages [][]byte
	size  int // bytes of all records in pages, dead ones included
	dead  int // bytes of those replaced, deleted or expired
}

type place struct {
	page, at uint32
	expires  time.Duration // on the clock of Store.since
}

const (
	recordHeader = 6
	pageSize     = 16 << 10 // a larger record has a page of its own
)

// in returns the key and the value of a record in pages.
func (p place) in(pages [][]byte) (key, val []byte) {
	b := pages[p.page][p.at:]
	k := recordHeader + int(binary.NativeEndian.Uint16(b))
	v := k + int(binary.NativeEndian.Uint32(b[2:]))
	return b[recordHeader:k:k], b[k:v:v]
}

func recordSize[K string | []byte](key K, val []byte) int {
	return recordHeader + len(key) + len(val)
}

// put sets the record with that hash. When a quarter is dead it first copies
// what is left to new pages: a pause for a 256th of the store.
func (s *shard) put(hash uint64, key string, val []byte, expires time.Duration) {
	s.remove(hash)
	if s.dead > pageSize && s.dead > s.size/4 {
		index, pages := s.index, s.pages
		s.index, s.pages, s.size, s.dead = make(map[uint64]place, len(index)), nil, 0, 0
		for h, p := range index {
			k, v := p.in(pages)
			appendRecord(s, h, k, v, p.expires)
		}
	}
	appendRecord(s, hash, key, val, expires)
}

func appendRecord[K string | []byte](s *shard, hash uint64, key K, val []byte, expires time.Duration) {
	size := recordSize(key, val)
	last := len(s.pages) - 1
	if last < 0 || cap(s.pages[last])-len(s.pages[last]) < size {
		s.pages = append(s.pages, make([]byte, 0, max(pageSize, size)))
		last++
	}
	b := s.pages[last]
	s.index[hash] = place{uint32(last), uint32(len(b)), expires}
	b = binary.NativeEndian.AppendUint16(b, uint16(len(key)))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(val)))
	b = append(b, key...)
	s.pages[last] = append(b, val...)
	s.size += size
}

// remove takes the record with that hash out of the index.
func (s *shard) remove(hash uint64) {
	if p, found := s.index[hash]; found {
		s.dead += recordSize(p.in(s.pages))
		delete(s.index, hash)
	}
}
