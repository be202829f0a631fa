package decode

import (
	"slices"
	"sort"
)

// Index returns the number of rows at or before p. Rows must be in stream order.
func (r *Rows) Index(p Position) int {
	return sort.Search(r.Len(), func(i int) bool { return r.Position(i).After(p) })
}

// RejectAt describes row i, which ClickHouse refused, as a reject.
func (r *Rows) RejectAt(i int, reason string, code int32) Reject {
	return Reject{
		Position: r.Position(i), CommitTime: r.CommitTime[i],
		ID: r.IDAt(i), Type: r.Type.Values[r.Type.Keys[i]],
		Raw: r.TupleAt(i).Encode(), Reason: reason, Code: code,
	}
}

// Refuse makes rejects of the rows at the positions of refused. Both must be in stream order.
func (r *Rows) Refuse(refused []Reject) {
	kept, next := 0, 0
	for i := range r.Len() {
		if next < len(refused) && refused[next].Position == r.Position(i) {
			next++
			continue
		}
		if kept != i {
			r.move(kept, i)
		}
		kept++
	}
	r.truncate(kept)
	for _, x := range refused {
		r.Reject(x)
	}
	slices.SortFunc(r.Rejects, func(a, b Reject) int { return a.Compare(b.Position) })
}

// move copies row from to the place of row to, which is before it. The context of every row
// before to is at its final place.
func (r *Rows) move(to, from int) {
	copy(r.ID[16*to:16*to+16], r.ID[16*from:])
	copy(r.TraceID[16*to:16*to+16], r.TraceID[16*from:])
	r.DateTime[to], r.MetadataVersion[to], r.CommitTime[to] = r.DateTime[from], r.MetadataVersion[from], r.CommitTime[from]
	r.LSN[to], r.Seq[to] = r.LSN[from], r.Seq[from]
	r.Type.Keys[to], r.Environment.Keys[to], r.PublishedBy.Keys[to] = r.Type.Keys[from], r.Environment.Keys[from], r.PublishedBy.Keys[from]
	start := r.ContextStart(to)
	r.ContextEnd[to] = start + copy(r.Context[start:], r.Context[r.ContextStart(from):r.ContextEnd[from]])
}

// truncate keeps the first n rows.
func (r *Rows) truncate(n int) {
	r.ID, r.DateTime, r.MetadataVersion = r.ID[:16*n], r.DateTime[:n], r.MetadataVersion[:n]
	r.Context, r.ContextEnd = r.Context[:r.ContextStart(n)], r.ContextEnd[:n]
	r.LSN, r.Seq, r.CommitTime = r.LSN[:n], r.Seq[:n], r.CommitTime[:n]
	r.Type.Keys, r.Environment.Keys, r.PublishedBy.Keys = r.Type.Keys[:n], r.Environment.Keys[:n], r.PublishedBy.Keys[:n]
	r.TraceID = r.TraceID[:16*n]
}
