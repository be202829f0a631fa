// Package simch is a model of ClickHouse for the simulation: nodes that share
// replicated tables or have one of their own, blocks that are written whole,
// deduplication by token, time limits, and the real native protocol in front of
// them. It knows the queries of the streamer and no others.
package simch

import (
	"fmt"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// Kind of the tables.
type Kind uint8

const (
	// Plain is MergeTree on one node, which several listeners may serve.
	Plain Kind = iota
	// Replicated is ReplicatedMergeTree, of which every node has a copy.
	Replicated
	// Shared is SharedMergeTree, as in ClickHouse Cloud.
	Shared
)

// Column of a table.
type Column struct{ Name, Type string }

// Options of a Cluster.
type Options struct {
	Kind   Kind
	Nodes  int
	Window int           // tokens remembered in each table
	Age    time.Duration // for how long, measured against the newest; 0 for ever
	Schema map[string][]Column
	// Fate decides what becomes of an insert that has all its data.
	Fate func() Fate
	// Away reports that a node answers no other node.
	Away func(node int) bool
	// Lag is how much later a node has a part of another one.
	Lag func(node int) time.Duration
}

// Fate is what becomes of an insert.
type Fate struct {
	// Work is how long it takes to write the block.
	Work time.Duration
	// Stalled work cannot be timed out, as a commit that waits for a disk.
	Stalled bool
	// Error is the code it fails with before anything is written; 0 for none.
	Error int32
	// ViewError is the code its view fails with after the rows are written; 0 for none.
	ViewError int32
	// Silent loses the answer with the connection.
	Silent bool
}

// Cluster is what the nodes share.
type Cluster struct {
	// Written is called when a block has become rows, Dropped when it was not because
	// its token was known. Both are called with the lock held.
	Written func(*Part)
	Dropped func(*Part)

	options Options
	mu      sync.Mutex
	changed *sync.Cond
	tables  map[string]*table
	nodes   []*Node
	unknown error
	// registered are the ids of inserts without the parts that differ between attempts.
	registered map[string]bool
	wait       sync.WaitGroup
}

// Node is one server.
type Node struct {
	cluster *Cluster
	number  int
	queries map[string]*running
}

type table struct {
	name       string
	null       bool // ENGINE = Null
	constraint bool // event_context must not be poison
	index      bool // nor toxic, for which there is no constraint
	failure    int32
	maxRows    int // of an insert; 0: any
	parts      []*Part
	window     []remembered // one for all partitions
	view       *table
	columns    []Column
}

// remembered is a token in the window; the same one in another partition is another.
type remembered struct {
	partition, token string
	at               time.Time
}

// Part is a block that was written.
type Part struct {
	Table     string
	Partition string
	Token     string
	QueryID   string
	Rows      []Row
	At        time.Time

	node  int
	seen  []time.Time // when each node has it
	asked int         // of so many replicas was the insert asked
}

// Row of event_log or of the dead letters.
type Row struct {
	ID         [16]byte
	Source     string
	Timeline   uint32
	LSN        uint64
	Seq        uint32
	IngestedAt int64 // milliseconds
	CommitTime int64 // microseconds
	Type       string
	Context    string
	Deleted    bool
}

// New returns a cluster with empty tables.
func New(o Options) *Cluster {
	c := &Cluster{options: o, tables: make(map[string]*table), registered: make(map[string]bool)}
	c.changed = sync.NewCond(&c.mu)
	for name, columns := range o.Schema {
		c.tables[name] = &table{name: name, columns: columns}
	}
	for i := range o.Nodes {
		c.nodes = append(c.nodes, &Node{cluster: c, number: i, queries: make(map[string]*running)})
	}
	return c
}

// Node returns node i.
func (c *Cluster) Node(i int) *Node { return c.nodes[i] }

// Wait returns when all sessions have ended; their connections must be closed before.
func (c *Cluster) Wait() { c.wait.Wait() }

// Change calls change with the cluster's lock held.
func (c *Cluster) Change(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// Err is what the model cannot do, once it was asked for it.
func (c *Cluster) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unknown
}

// SetConstraint makes the table refuse poison, or take it.
func (c *Cluster) SetConstraint(name string, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tables[name].constraint = on
}

// AddView gives the table a materialized view that copies its rows.
func (c *Cluster) AddView(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tables[name].view = &table{name: name + " view"}
}

// Delete removes the rows that match, as a TTL or DELETE does, and returns how many.
func (c *Cluster) Delete(name string, match func(*Row) bool) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.tables[name].parts {
		for i := range p.Rows {
			if r := &p.Rows[i]; !r.Deleted && match(r) {
				r.Deleted = true
				n++
			}
		}
	}
	return n
}

// SetFailure makes every insert into the table fail with an error code; 0 for none.
func (c *Cluster) SetFailure(name string, code int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tables[name].failure = code
}

// Fill writes rows as another program does.
func (c *Cluster) Fill(name string, rows []Row) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commit(0, c.tables[name], &Part{Table: name, Rows: rows}, true)
}

// Other makes the table remember the token of a block of another writer.
func (c *Cluster) Other(name, token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remember(c.tables[name], "other", token)
}

// Flood makes the table forget every token, if no insert is under way, which would still
// need them. It reports whether it did.
func (c *Cluster) Flood(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.ContainsFunc(c.nodes, (*Node).inserting) {
		return false
	}
	c.tables[name].window = nil
	return true
}

// Inserting reports whether the node has an insert under way.
func (n *Node) Inserting() bool {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	return n.inserting()
}

func (n *Node) inserting() bool {
	for _, q := range n.queries {
		if q.insert {
			return true
		}
	}
	return false
}

// Registered reports whether an insert with the token, or one of its dead letters, was ever registered.
func (c *Cluster) Registered(token string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.registered[token]
}

// attempt is the part that a query id has before its attempt's number and name.
var attempt = regexp.MustCompile(`^(.*?)(-dead|-refused\d+)?-\d+-[0-9a-f]+$`)

// lags reports whether a node lacks parts that others have.
func (c *Cluster) lags(node int) bool {
	now := time.Now()
	for _, t := range c.tables {
		for _, p := range t.parts {
			if p.seen[node].After(now) {
				return true
			}
		}
	}
	return false
}

// View returns the rows of the table's view.
func (c *Cluster) View(name string) []Row { return c.rows(c.tables[name].view) }

// Rows returns the rows of a table, as all nodes have them in the end.
func (c *Cluster) Rows(name string) []Row { return c.rows(c.tables[name]) }

func (c *Cluster) rows(t *table) (rows []Row) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range t.parts {
		for _, r := range p.Rows {
			if !r.Deleted {
				rows = append(rows, r)
			}
		}
	}
	return rows
}

// commit writes a block, unless its token is known in its partition. The lock is held.
func (c *Cluster) commit(node int, t *table, p *Part, dependent bool) {
	p.At = time.Now()
	if len(p.Rows) > 0 {
		p.Partition = time.UnixMilli(p.Rows[0].IngestedAt).UTC().Format("200601")
	}
	known := p.Token != "" && c.known(t, p.Partition, p.Token)
	if known {
		if c.Dropped != nil {
			c.Dropped(p)
		}
	} else {
		c.remember(t, p.Partition, p.Token)
		p.node = node
		p.seen = make([]time.Time, len(c.nodes))
		for i := range p.seen {
			p.seen[i] = p.At
			if i != node && c.options.Kind != Plain {
				p.seen[i] = p.At.Add(c.options.Lag(i))
			}
		}
		if !t.null {
			t.parts = append(t.parts, p)
		}
		if c.Written != nil {
			c.Written(p)
		}
	}
	if t.view != nil && (dependent || !known) {
		copied := *p
		copied.Rows = slices.Clone(p.Rows)
		copied.Table = t.view.name
		c.commit(node, t.view, &copied, dependent)
	}
}

func (c *Cluster) remember(t *table, partition, token string) {
	t.window = append(t.window, remembered{partition, token, time.Now()})
	t.window = t.window[max(0, len(t.window)-c.options.Window):]
}

// known looks a token up. The age of tokens is measured against the newest one.
func (c *Cluster) known(t *table, partition, token string) bool {
	if len(t.window) == 0 {
		return false
	}
	newest := t.window[len(t.window)-1].at
	return slices.ContainsFunc(t.window, func(r remembered) bool {
		return r.token == token && r.partition == partition && (c.options.Age == 0 || newest.Sub(r.at) <= c.options.Age)
	})
}

// visible returns the rows that a node shows and that match. A consistent read sees all that counts,
// or fails on a replica that lacks some of it.
func (c *Cluster) visible(node int, name string, consistent bool, match func(*Row) bool) (rows []*Row, err error) {
	t := c.tables[name]
	now := time.Now()
	for _, p := range t.parts {
		settled := true
		if c.options.Kind == Replicated && consistent && p.asked > 1 {
			settled = p.copies(now) >= p.asked
		}
		switch {
		case c.options.Kind == Shared && consistent, !p.seen[node].After(now):
			if !settled {
				continue // too few replicas have it
			}
		case consistent && settled && c.options.Kind == Replicated && p.asked > 1:
			return nil, &exception{proto.ErrReplicaIsNotInQuorum, "REPLICA_IS_NOT_IN_QUORUM", "Replica doesn't have part which was successfully written to quorum of other replicas"}
		default:
			continue
		}
		for i := range p.Rows {
			if r := &p.Rows[i]; !r.Deleted && match(r) {
				rows = append(rows, r)
			}
		}
	}
	return rows, nil
}

// copies counts the nodes that have the part at a time.
func (p *Part) copies(now time.Time) (n int) {
	for _, at := range p.seen {
		if !at.After(now) {
			n++
		}
	}
	return n
}

// settledAt is when so many nodes have the part.
func (p *Part) settledAt(copies int) time.Time {
	times := slices.SortedFunc(slices.Values(p.seen), time.Time.Compare)
	return times[min(copies, len(times))-1]
}

// exception is an error that the client gets.
type exception struct {
	code proto.Error
	name string
	text string
}

func (e *exception) Error() string { return fmt.Sprintf("Code: %d. %s (%s)", e.code, e.text, e.name) }
