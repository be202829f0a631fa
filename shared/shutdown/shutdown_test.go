package shutdown_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"diehard/shared/shutdown"
)

// TestMain doubles as the program under test: it says "ready", reports the
// first signal and then refuses to end.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_TEST_CHILD") == "" {
		goleak.VerifyTestMain(m)
		return
	}
	ctx, stop := shutdown.Context(context.Background())
	defer stop()
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println(context.Cause(ctx))
	select {}
}

func TestFirstSignalCancelsSecondExits(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			child := exec.CommandContext(t.Context(), os.Args[0])
			child.Env = append(os.Environ(), "RUN_TEST_CHILD=1")
			out, err := child.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, child.Start())
			lines := bufio.NewScanner(out)

			require.True(t, lines.Scan())
			require.Equal(t, "ready", lines.Text())
			require.NoError(t, child.Process.Signal(sig))
			require.True(t, lines.Scan())
			assert.Equal(t, "context canceled: "+sig.String(), lines.Text())
			require.NoError(t, child.Process.Signal(sig))

			var exit *exec.ExitError
			require.ErrorAs(t, child.Wait(), &exit)
			assert.Equal(t, shutdown.ExitInterrupted, exit.ExitCode())
		})
	}
}

func TestStopReleasesEverything(t *testing.T) {
	ctx, stop := shutdown.Context(t.Context())
	require.NoError(t, ctx.Err())
	stop()
	stop()
	require.ErrorIs(t, ctx.Err(), context.Canceled)
	assert.ErrorIs(t, context.Cause(ctx), context.Canceled)
}
