// The reference gateway: what an order costs in Go's net/http, with the work that nobody can leave out.
//
// One order: authenticate a bearer token (SHA-256, compared in constant time) → parse the protobuf → validate →
// refuse a repeated request id → check against a user's money and position in memory → append to a journal that is
// synced (fdatasync) before the answer, shared by all that wait → call a broker that acknowledges at once → answer
// in protobuf. It has no risk limits beyond that, no history to ask, no update stream and no second protocol.
//
//	go run . -journal FILE -socket PATH -token TOKEN
//
// Prints where it listens, as JSON, and serves until it is killed.
package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
)

const bodyBytesMax = 16 * 1024

type gateway struct {
	tokens  map[string]identity
	book    *book
	journal *journal
	broker  broker
}

type identity struct {
	user, strategy string
	sha256         [32]byte
}

// The broker acknowledges at once: what it costs is not what is measured.
type broker struct{}

func (broker) submit(order *order) string { return "broker-" + order.id }

func (g *gateway) place(w http.ResponseWriter, r *http.Request) {
	who, ok := g.identify(r.Header.Get("Authorization"))
	if !ok {
		answer(w, http.StatusUnauthorized, failure("the token is not valid"))
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, bodyBytesMax+1))
	if err != nil || len(body) > bodyBytesMax {
		answer(w, http.StatusRequestEntityTooLarge, failure("the body is too large"))
		return
	}
	request, err := parse(body)
	if err == nil {
		err = request.validate()
	}
	if err != nil {
		answer(w, http.StatusBadRequest, failure(err.Error()))
		return
	}
	placed, isNew, err := g.book.open(who, request)
	if err != nil {
		answer(w, http.StatusUnprocessableEntity, failure(err.Error()))
		return
	}
	if isNew {
		if err := g.journal.append(placed.record()); err != nil {
			answer(w, http.StatusServiceUnavailable, failure(err.Error()))
			return
		}
		g.book.accept(placed, g.broker.submit(placed))
	}
	answer(w, http.StatusCreated, placed.response())
}

func (g *gateway) identify(authorization string) (identity, bool) {
	token := strings.TrimPrefix(authorization, "Bearer ")
	// desk_<kind>_<id>_<secret>: the id finds the hash of the whole.
	parts := strings.Split(token, "_")
	if len(parts) != 4 {
		return identity{}, false
	}
	who, known := g.tokens[parts[2]]
	sum := sha256.Sum256([]byte(token))
	right := subtle.ConstantTimeCompare(sum[:], who.sha256[:]) == 1
	return who, known && right
}

func answer(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/x-protobuf")
	w.WriteHeader(status)
	w.Write(body)
}

func main() {
	path := flag.String("journal", "", "the journal's file")
	socketPath := flag.String("socket", "", "the unix socket to listen on, besides a TCP port")
	token := flag.String("token", "", "the token of the user alice")
	flag.Parse()
	journal, err := openJournal(*path)
	check(err)
	parts := strings.Split(*token, "_")
	if len(parts) != 4 {
		log.Fatal("the token must be desk_<kind>_<id>_<secret>")
	}
	g := &gateway{
		tokens:  map[string]identity{parts[2]: {"alice", "manual", sha256.Sum256([]byte(*token))}},
		book:    newBook(),
		journal: journal,
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	unix, err := net.Listen("unix", *socketPath)
	check(err)
	mux := http.NewServeMux()
	mux.HandleFunc("/order", g.place)
	server := &http.Server{Handler: mux}
	where, _ := json.Marshal(map[string]any{
		"port": tcp.Addr().(*net.TCPAddr).Port, "socket": *socketPath, "token": *token,
	})
	fmt.Fprintln(os.Stdout, string(where))
	go server.Serve(unix)
	check(server.Serve(tcp))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
