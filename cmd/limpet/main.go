// Command limpet binds login sessions to device keys: a reference auth server,
// a client, and a demonstration of both.
package main

import "os"

func main() {
	os.Exit(run(os.Args[1:]))
}
