package migrations

// RefuseTextIndex is for tests alone: the migrations fix the settings of their session.
var RefuseTextIndex = refuseTextIndex
