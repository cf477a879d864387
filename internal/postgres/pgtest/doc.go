// Package pgtest gives tests real PostgreSQL servers: each in a directory of its own, on a socket of its own, started in
// about half a second, and gone when the test is over.
//
// It owns the servers' processes, their directories and how their users and environment are set up. What a server is
// asked to do is the test's own affair. Everything that can't be done fails the test at once.
//
// Servers run as the current user, or, where that is root, as the user postgres (nobody, if there is none). A process
// beside the tests, started once per test process, waits for their end in any manner, SIGKILL included, then stops what
// still runs and removes what is left. Tests may run in parallel; the methods of one Server that change its state
// (Start, Stop, Kill, …) are for one goroutine at a time, Try and the others may be called meanwhile.
package pgtest
