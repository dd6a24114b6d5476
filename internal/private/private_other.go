//go:build !unix

package private

import "os"

// syncDir does nothing: Windows has no call for it, and NTFS writes renames to its
// journal.
func syncDir(string) error { return nil }

// noFollow: links of Windows take rights to make.
const noFollow = 0

func giveAway(*os.File) error { return nil }

func giveAwayDir(string) error { return nil }
