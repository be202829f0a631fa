package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

const devstackName = "devstack"

var built struct {
	sync.Mutex
	path string
}

// Devstack returns the devstack program, which serves ClickHouse: this program if
// it is devstack, else DIEHARD_DEVSTACK, else the one built from the checkout,
// once per process. Building what did not change takes the go command a moment.
func Devstack(ctx context.Context) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if filepath.Base(self) == devstackName {
		return self, nil
	}
	if program := os.Getenv("DIEHARD_DEVSTACK"); program != "" {
		return program, nil
	}
	built.Lock()
	defer built.Unlock()
	if built.path != "" {
		return built.path, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	dev, err := DevDir()
	if err != nil {
		return "", err
	}
	program := filepath.Join(dev, "bin", devstackName)
	if err := Build(ctx, root, "./shared/dev/devstack", program); err != nil {
		return "", err
	}
	built.path = program
	return program, nil
}

// Build runs go build in root for the main package pkg, with flags, unless
// program is up to date. Processes that build at the same time take turns.
func Build(ctx context.Context, root, pkg, program string, flags ...string) error {
	if _, err := exec.LookPath("go"); err != nil {
		return errors.New("the go command is missing: install Go and put it into PATH")
	}
	lock, err := Lock(ctx, program+".lock", nil)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	// Without version control information, a commit does not change the program.
	args := append([]string{"build", "-buildvcs=false", "-o", program}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	return nil
}
