package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// server is what both engines need to start and to be waited for.
type server struct {
	name, logFile string
	ping          func(ctx context.Context) error // nil error once it answers
	explain       func(log, logFile string) error // the error of one that ended at once, from the log's end
}

// start starts cmd and waits until it answers. The process is nil if there is none;
// one that does not answer has ended.
func (s server) start(ctx context.Context, cmd *exec.Cmd) (*process, error) {
	var logged int64
	if info, err := os.Stat(s.logFile); err == nil {
		logged = info.Size()
	}
	p, err := spawn(cmd, s.logFile)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.name, err)
	}
	if err := s.ready(ctx, p); err != nil {
		if p.alive() {
			return p, errors.Join(err, p.kill(ctx))
		}
		return p, s.explain(logTail(s.logFile, logged), s.logFile)
	}
	return p, nil
}

// ready waits until p answers.
func (s server) ready(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := s.ping(ctx)
		if err == nil {
			return nil
		}
		if !p.alive() {
			return errors.New(s.name + " ended")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer; see %s: %w", s.name, s.logFile, err)
		case <-time.After(25 * time.Millisecond):
		}
	}
}
