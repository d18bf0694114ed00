// The load: keep-alive connections, each sending its next order when the last is answered, on one thread that reads
// and writes the sockets itself (epoll). It costs a few microseconds an order, so that the server is what is measured.
//
//	go_client -network tcp|unix -address ADDRESS -connections N -seconds S -warmup S < REQUEST
//
// REQUEST is the bytes of one request, in which 20 number signs stand for an id of its own. Prints JSON: orders per
// second, percentiles of the round trip in microseconds, and the share of a core that the client itself took.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"syscall"
	"time"
)

const idLength = 20

var (
	prefix = fmt.Sprintf("%08x", uint32(time.Now().UnixNano())^uint32(os.Getpid()<<16))
	number int
)

type connection struct {
	fd      int
	request []byte
	id      []byte
	got     []byte
	sentAt  time.Time
}

func (c *connection) send() {
	number++
	copy(c.id, fmt.Sprintf("%s%012d", prefix, number))
	c.sentAt = time.Now()
	for left := c.request; len(left) > 0; {
		n, err := syscall.Write(c.fd, left)
		if err == syscall.EINTR || err == syscall.EAGAIN {
			continue
		}
		if err != nil {
			log.Fatalf("cannot send: %v", err)
		}
		left = left[n:]
	}
}

// receive reads what has come; true when the answer is whole.
func (c *connection) receive(buffer []byte) bool {
	n, err := syscall.Read(c.fd, buffer)
	if err == syscall.EINTR || err == syscall.EAGAIN {
		return false
	}
	if err != nil || n == 0 {
		log.Fatalf("the server hung up: %v", err)
	}
	c.got = append(c.got, buffer[:n]...)
	head := bytes.Index(c.got, []byte("\r\n\r\n"))
	if head < 0 || len(c.got) < head+4+contentLength(c.got[:head]) {
		return false
	}
	if !bytes.Equal(c.got[9:12], []byte("201")) {
		log.Fatalf("refused: %q", c.got)
	}
	c.got = c.got[:0]
	return true
}

func contentLength(head []byte) int {
	for _, name := range []string{"\r\ncontent-length: ", "\r\nContent-Length: "} {
		if at := bytes.Index(head, []byte(name)); at >= 0 {
			digits := head[at+len(name):]
			if end := bytes.IndexByte(digits, '\r'); end >= 0 {
				digits = digits[:end]
			}
			length, err := strconv.Atoi(string(digits))
			if err == nil {
				return length
			}
		}
	}
	log.Fatalf("an answer without a length: %q", head)
	return 0
}

func dial(network, address string) int {
	family, to := syscall.AF_UNIX, syscall.Sockaddr(&syscall.SockaddrUnix{Name: address})
	if network == "tcp" {
		port, err := strconv.Atoi(address)
		check(err)
		family, to = syscall.AF_INET, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	}
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM, 0)
	check(err)
	check(syscall.Connect(fd, to))
	if network == "tcp" {
		check(syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1))
	}
	check(syscall.SetNonblock(fd, true))
	return fd
}

func main() {
	network := flag.String("network", "tcp", "tcp or unix")
	address := flag.String("address", "", "a port of this machine, or the socket's path")
	count := flag.Int("connections", 1, "how many orders are under way at once")
	seconds := flag.Float64("seconds", 2, "of the measurement")
	warmup := flag.Float64("warmup", 0.5, "seconds before it")
	flag.Parse()
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	template, err := io.ReadAll(os.Stdin)
	check(err)
	at := bytes.Index(template, bytes.Repeat([]byte("#"), idLength))
	if at < 0 {
		log.Fatal("the request has no place for an id")
	}
	epoll, err := syscall.EpollCreate1(0)
	check(err)
	connections := map[int32]*connection{}
	for i := 0; i < *count; i++ {
		c := &connection{fd: dial(*network, *address), request: append([]byte(nil), template...)}
		c.id = c.request[at : at+idLength]
		connections[int32(c.fd)] = c
		check(syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, c.fd,
			&syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(c.fd)}))
		c.send()
	}
	measure(epoll, connections, duration(*warmup), duration(*seconds))
}

func measure(epoll int, connections map[int32]*connection, warmup, length time.Duration) {
	events := make([]syscall.EpollEvent, 256)
	buffer := make([]byte, 64<<10)
	took := make([]time.Duration, 0, 1<<20)
	begin := time.Now().Add(warmup)
	end := begin.Add(length)
	var busy time.Duration
	isWarm := false
	for {
		n, err := syscall.EpollWait(epoll, events, -1)
		if err == syscall.EINTR {
			continue
		}
		check(err)
		now := time.Now()
		if !isWarm && now.After(begin) {
			isWarm, begin, busy = true, now, cpu()
		}
		if now.After(end) {
			break
		}
		for _, event := range events[:n] {
			c := connections[event.Fd]
			if c.receive(buffer) {
				if isWarm {
					took = append(took, time.Since(c.sentAt))
				}
				c.send()
			}
		}
	}
	elapsed := time.Since(begin)
	report(took, elapsed, cpu()-busy)
}

func report(took []time.Duration, elapsed, busy time.Duration) {
	if len(took) == 0 {
		log.Fatal("no order was answered")
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	at := func(part float64) float64 {
		return float64(took[int(part*float64(len(took)-1))].Nanoseconds()) / 1000
	}
	result := map[string]float64{
		"rate": float64(len(took)) / elapsed.Seconds(), "orders": float64(len(took)),
		"p50": at(0.5), "p99": at(0.99), "client": busy.Seconds() / elapsed.Seconds(),
	}
	check(json.NewEncoder(os.Stdout).Encode(result))
}

func cpu() time.Duration {
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
