package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

const billionth = 1_000_000_000

// Dollars, in millionths: what one user may have in open buy orders.
const allotment = int64(1_000_000_000_000_000_000)

type order struct {
	id, clientID, brokerID, user, strategy, createdAt string
	request                                           *request
}

type account struct {
	reserved   int64
	positions  map[string]int64
	open       map[string]*order
	byRequest  map[string]*order
	sellOpenOf map[string]int64
}

type book struct {
	mutex    sync.Mutex
	accounts map[string]*account
}

func newBook() *book { return &book{accounts: map[string]*account{}} }

func (r *request) validate() error {
	if !isSymbol(r.symbol) {
		return errors.New("symbol must be like AAPL")
	}
	if r.side != "buy" && r.side != "sell" {
		return errors.New("side must be buy or sell")
	}
	switch r.timeInForce {
	case "", "day", "gtc", "ioc", "fok":
	default:
		return errors.New("time_in_force is unknown")
	}
	var err error
	if r.quantity, err = number(r.qty); err != nil || r.quantity <= 0 {
		return errors.New("qty must be a number above 0")
	}
	switch r.orderType {
	case "", "market":
		if r.limitPrice != "" || r.stopPrice != "" {
			return errors.New("a market order has no price")
		}
	case "limit":
		if r.limit, err = number(r.limitPrice); err != nil || r.limit <= 0 || r.stopPrice != "" {
			return errors.New("a limit order has a limit price above 0 and no other")
		}
	default:
		return errors.New("order_type is unknown")
	}
	if len(r.requestID) > 64 {
		return errors.New("request_id is too long")
	}
	return nil
}

func isSymbol(text string) bool {
	for _, c := range text {
		if (c < 'A' || c > 'Z') && c != '.' && c != '/' && (c < '0' || c > '9') {
			return false
		}
	}
	return len(text) > 0 && len(text) <= 16
}

// number reads a plain decimal number of at most 9 digits on either side of the point, in billionths.
func number(text string) (int64, error) {
	whole, fraction, _ := strings.Cut(text, ".")
	if len(whole) == 0 || len(whole) > 9 || len(fraction) > 9 {
		return 0, errors.New("not a plain number")
	}
	value := int64(0)
	for _, digits := range []string{whole, fraction} {
		for _, c := range digits {
			if c < '0' || c > '9' {
				return 0, errors.New("not a plain number")
			}
			value = value*10 + int64(c-'0')
		}
	}
	for i := len(fraction); i < 9; i++ {
		value *= 10
	}
	return value, nil
}

// open checks the order against the user's money and position, and reserves what it needs. A repeated request id
// gives the order that it made.
func (b *book) open(who identity, r *request) (*order, bool, error) {
	now := time.Now().UTC()
	b.mutex.Lock()
	defer b.mutex.Unlock()
	a := b.accounts[who.user]
	if a == nil {
		a = &account{0, map[string]int64{}, map[string]*order{}, map[string]*order{}, map[string]int64{}}
		b.accounts[who.user] = a
	}
	if earlier := a.byRequest[r.requestID]; earlier != nil && r.requestID != "" {
		return earlier, false, nil
	}
	if r.side == "sell" && a.positions[r.symbol]-a.sellOpenOf[r.symbol] < r.quantity {
		return nil, false, errors.New("you do not own that many")
	}
	cost := r.quantity / 1000 * (r.limit / 1000) / 1_000_000
	if r.side == "buy" && a.reserved+cost > allotment {
		return nil, false, errors.New("you have not enough money")
	}
	id := newID(now)
	o := &order{
		id: id, clientID: "d1." + who.user + "." + who.strategy + "." + id, user: who.user, strategy: who.strategy,
		createdAt: now.Format("2006-01-02T15:04:05.000000Z"), request: r,
	}
	if r.side == "buy" {
		a.reserved += cost
	} else {
		a.sellOpenOf[r.symbol] += r.quantity
	}
	a.open[id] = o
	if r.requestID != "" {
		a.byRequest[r.requestID] = o
	}
	return o, true, nil
}

func (b *book) accept(o *order, brokerID string) {
	b.mutex.Lock()
	o.brokerID = brokerID
	b.mutex.Unlock()
}

func newID(now time.Time) string {
	var random [10]byte
	rand.Read(random[:])
	return fmt.Sprintf("%012x%s", now.UnixMilli(), hex.EncodeToString(random[:]))
}

// record is what the journal keeps of an order: enough to make it again.
func (o *order) record() []byte {
	r := o.request
	line, _ := json.Marshal(&record{o.id, o.clientID, o.user, o.strategy, o.createdAt, r.symbol, r.qty, r.side,
		r.orderType, r.timeInForce, r.limitPrice, r.requestID})
	return append(line, '\n')
}

type record struct {
	OrderID       string `json:"order_id"`
	ClientOrderID string `json:"client_order_id"`
	User          string `json:"user"`
	Strategy      string `json:"strategy"`
	At            string `json:"at"`
	Symbol        string `json:"symbol"`
	Qty           string `json:"qty"`
	Side          string `json:"side"`
	OrderType     string `json:"type"`
	TimeInForce   string `json:"time_in_force"`
	LimitPrice    string `json:"limit_price"`
	RequestID     string `json:"request_id"`
}
