//go:build !linux

package prompt

import "os"

func flush(*os.File) {}
