package chserver

import (
	"fmt"
	"syscall"
	"unsafe"
)

// guarded are the signals whose handlers the ClickHouse library replaces or
// resets. Go's runtime needs its own: it turns SIGSEGV into a panic and
// preempts goroutines by SIGURG.
var guarded = []syscall.Signal{
	syscall.SIGABRT, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGHUP, syscall.SIGILL, syscall.SIGINT,
	syscall.SIGPIPE, syscall.SIGQUIT, syscall.SIGSEGV, syscall.SIGSYS, syscall.SIGTERM, syscall.SIGTRAP,
	syscall.SIGTSTP, syscall.SIGURG, syscall.SIGUSR1, syscall.SIGUSR2,
}

// kernelSigaction is the kernel's struct sigaction on Linux.
type kernelSigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// keepSignalHandlers runs call and puts back every guarded handler it changed.
func keepSignalHandlers(call func()) error {
	saved := make([]kernelSigaction, len(guarded))
	for i, sig := range guarded {
		if err := rtSigaction(sig, nil, &saved[i]); err != nil {
			return err
		}
	}
	call()
	for i, sig := range guarded {
		if err := rtSigaction(sig, &saved[i], nil); err != nil {
			return err
		}
	}
	return nil
}

func rtSigaction(sig syscall.Signal, set, get *kernelSigaction) error {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(get)), unsafe.Sizeof(saveMask), 0, 0)
	if errno != 0 {
		return fmt.Errorf("signal handler of %s: %w", sig, errno)
	}
	return nil
}

const saveMask = uint64(0)
