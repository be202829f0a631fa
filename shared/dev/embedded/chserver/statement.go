package chserver

import "strings"

// statement is what the server needs to know of a query to run it.
type statement struct {
	kind statementKind
	sql  string // without a closing semicolon and, for a SELECT, without FORMAT
	verb string // first keyword, upper case

	// inline is set for an INSERT whose rows are in the statement.
	inline bool
	insert insertInto // of statementInsertData
	where  string     // of statementKill: the condition
	mode   string     // of statementKill: SYNC, ASYNC or TEST
}

type statementKind uint8

const (
	statementOther      statementKind = iota // anything without rows to stream
	statementSelect                          // rows, in any number
	statementInsertData                      // INSERT whose rows the client sends as blocks
	statementKill                            // KILL QUERY
)

// insertInto are the parts of an INSERT that waits for the client's blocks.
type insertInto struct {
	head    string   // INSERT INTO target (columns)
	tail    string   // SETTINGS … between the head and the data, may be empty
	target  string   // table or table function, as DESCRIBE TABLE wants it
	columns []string // as listed; nil: all
	except  []string // of * EXCEPT (…)

	isFunction bool // target is a table function
}

func parseStatement(sql string) statement {
	l := &lexer{sql: sql}
	first := l.peek()
	st := statement{sql: sql, verb: strings.ToUpper(first.text)}
	switch {
	case first.is("SELECT"), first.is("WITH"), first.punct("("):
		st.kind = statementSelect
		st.sql = selectBody(sql, &st)
	case first.is("INSERT"):
		l.next()
		parseInsert(l, &st)
	case first.is("KILL"):
		parseKill(l, &st)
	}
	return st
}

// selectBody removes the closing semicolon and the FORMAT clause, which the client
// handles, and detects an INSERT after WITH.
func selectBody(sql string, st *statement) string {
	l := &lexer{sql: sql}
	format := [2]int{} // start and end of the clause
	for t := l.next(); t.kind != tokenEnd; t = l.next() {
		switch {
		case t.punct("("):
			l.skipGroup()
		case t.is("INSERT"):
			st.kind = statementOther
		case t.is("FORMAT") && l.peek().kind == tokenWord:
			name := l.next()
			if after := l.peek(); after.kind == tokenEnd || after.punct(";") || after.is("SETTINGS") {
				format = [2]int{t.start, name.end}
			}
		case t.punct(";") && l.peek().kind == tokenEnd:
			sql = sql[:t.start]
		}
	}
	if format[1] == 0 {
		return sql
	}
	return sql[:format[0]] + sql[format[1]:]
}

// parseInsert reads what follows INSERT.
func parseInsert(l *lexer, st *statement) {
	into := insertInto{}
	if l.peek().is("INTO") {
		l.next()
	}
	if t := l.peek(); t.is("TABLE") {
		l.next()
	}
	start := l.peek().start
	into.isFunction = l.peek().is("FUNCTION")
	if into.isFunction {
		l.next()
		start = l.peek().start
	}
	end := skipName(l)
	if into.isFunction && l.peek().punct("(") {
		l.next()
		l.skipGroup()
		end = l.pos
	}
	into.target = l.sql[start:end]
	if l.peek().punct("(") {
		open := l.next()
		if t := l.peek(); t.is("SELECT") || t.is("WITH") {
			return
		}
		into.columns, into.except = parseColumns(l.sql[open.end:l.skipGroup()])
		end = l.pos
	}
	into.head = l.sql[:end]
	parseInsertTail(l, end, st)
	if st.kind == statementInsertData {
		into.tail = st.insert.tail
		st.insert = into
	}
}

// skipName skips a name of one or more parts and returns its end.
func skipName(l *lexer) int {
	t := l.next()
	for l.peek().punct(".") {
		l.next()
		t = l.next()
	}
	return t.end
}

// parseInsertTail reads what is between the columns and the rows, and finds out
// where the rows come from: the client, the statement, a SELECT or a file.
func parseInsertTail(l *lexer, from int, st *statement) {
	for {
		t := l.next()
		switch {
		case t.punct("("):
			l.skipGroup()
			continue
		case t.is("VALUES"):
			st.inline = !atEnd(l)
		case t.is("FORMAT"):
			l.next()
			st.inline = !atEnd(l)
		case t.is("SELECT"), t.is("WITH"), t.is("FROM"), t.is("WATCH"):
			return
		case t.kind != tokenEnd && !t.punct(";"):
			continue
		}
		if !st.inline {
			st.kind, st.insert.tail = statementInsertData, l.sql[from:t.start]
		}
		return
	}
}

func atEnd(l *lexer) bool {
	t := l.next()
	return t.kind == tokenEnd || t.punct(";") && l.peek().kind == tokenEnd
}

// parseColumns reads a list of names, or * EXCEPT (names).
func parseColumns(list string) (columns, except []string) {
	l := &lexer{sql: list}
	inExcept := false
	for t := l.next(); t.kind != tokenEnd; t = l.next() {
		switch {
		case t.is("EXCEPT"):
			inExcept = true
		case t.kind != tokenWord && t.kind != tokenQuoted:
		case inExcept:
			except = append(except, t.identifier())
		default:
			columns = append(columns, dottedName(l, t))
		}
	}
	return columns, except
}

// dottedName joins the parts of a nested column's name.
func dottedName(l *lexer, first token) string {
	name := first.identifier()
	for l.peek().punct(".") {
		l.next()
		name += "." + l.next().identifier()
	}
	return name
}

func parseKill(l *lexer, st *statement) {
	l.next()
	if !l.next().is("QUERY") {
		return
	}
	from := -1
	st.mode = "ASYNC"
	for t := l.next(); ; t = l.next() {
		switch {
		case from < 0 && t.is("WHERE"):
			from = t.end
			st.kind = statementKill
		case from >= 0 && (t.is("SYNC") || t.is("ASYNC") || t.is("TEST")):
			st.where, st.mode = l.sql[from:t.start], strings.ToUpper(t.text)
			return
		case t.is("FORMAT"), t.punct(";"), t.kind == tokenEnd:
			if from >= 0 {
				st.where = l.sql[from:t.start]
			}
			return
		}
	}
}

// replaceTable replaces every mention of system.name by subquery.
func replaceTable(sql, name, subquery string) string {
	var b strings.Builder
	done := 0
	l := &lexer{sql: sql}
	for t := l.next(); t.kind != tokenEnd; t = l.next() {
		if !strings.EqualFold(t.identifier(), "system") || !l.peek().punct(".") {
			continue
		}
		l.next()
		if part := l.next(); part.identifier() == name {
			b.WriteString(sql[done:t.start])
			b.WriteString(subquery)
			done = part.end
		}
	}
	b.WriteString(sql[done:])
	return b.String()
}
