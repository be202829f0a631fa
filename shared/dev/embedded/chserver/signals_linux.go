package chserver

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
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

// handOnQuit has SIGQUIT print the goroutines whichever thread it comes to. The
// kernel may choose one of the library's, on which Go's own handler ends the
// process without a word; a signal that is asked for is noticed on every thread,
// and then sent to a thread of Go.
func handOnQuit() (stop func()) {
	quit := make(chan os.Signal, 1)
	signal.Notify(quit, unix.SIGQUIT)
	go func() {
		if _, asked := <-quit; !asked {
			return
		}
		runtime.LockOSThread()
		signal.Reset(unix.SIGQUIT)
		_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGQUIT) // nothing can be done about a failure
	}()
	return func() {
		signal.Stop(quit)
		close(quit)
	}
}
