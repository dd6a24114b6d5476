// Package weakmap keeps a value for each of some objects, for as long as these
// are there.
package weakmap

import (
	"runtime"
	"sync"
	"weak"
)

// Map keeps a value for each object that it is asked about, until nobody holds the
// object any more. The value must not hold it. A Map is safe for concurrent use.
type Map[K, V any] struct {
	mu     sync.Mutex
	values map[weak.Pointer[K]]V
}

// Of returns the value of an object, which create makes when it is first asked
// for. An error of create is returned as it is, and nothing is kept.
func (m *Map[K, V]) Of(object *K, create func(*K) (V, error)) (V, error) {
	name := weak.Make(object)
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.values[name]; ok {
		return v, nil
	}
	v, err := create(object)
	if err != nil {
		return v, err
	}
	if m.values == nil {
		m.values = make(map[weak.Pointer[K]]V)
	}
	m.values[name] = v
	runtime.AddCleanup(object, m.forget, name)
	return v, nil
}

func (m *Map[K, V]) forget(name weak.Pointer[K]) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.values, name)
}

// Len returns the number of objects that have a value.
func (m *Map[K, V]) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.values)
}
