package main

import (
	"encoding/binary"
	"errors"
	"unicode/utf8"
)

// The fields of proto/desk/v1/orders.proto that a plain order has, read and written by hand, so that the gateway is
// built with Go's standard library alone. What generated code does besides (reflection, unknown fields) it does not.
type request struct {
	symbol, qty, side, orderType, timeInForce, limitPrice, stopPrice, requestID string

	// Filled by validate, in billionths.
	quantity, limit int64
}

var errWire = errors.New("the body is not a protobuf OrderRequest")

func parse(body []byte) (*request, error) {
	r := &request{}
	for len(body) > 0 {
		tag, n := binary.Uvarint(body)
		if n <= 0 {
			return nil, errWire
		}
		body = body[n:]
		switch tag & 7 {
		case 0:
			if _, n = binary.Uvarint(body); n <= 0 {
				return nil, errWire
			}
			body = body[n:]
		case 1, 5:
			size := 8
			if tag&7 == 5 {
				size = 4
			}
			if len(body) < size {
				return nil, errWire
			}
			body = body[size:]
		case 2:
			length, n := binary.Uvarint(body)
			if n <= 0 || uint64(len(body)-n) < length {
				return nil, errWire
			}
			value := body[n : n+int(length)]
			body = body[n+int(length):]
			if field := r.field(tag >> 3); field != nil {
				if !utf8.Valid(value) {
					return nil, errWire
				}
				*field = string(value)
			}
		default:
			return nil, errWire
		}
	}
	return r, nil
}

func (r *request) field(number uint64) *string {
	switch number {
	case 1:
		return &r.symbol
	case 2:
		return &r.qty
	case 3:
		return &r.side
	case 4:
		return &r.orderType
	case 5:
		return &r.timeInForce
	case 6:
		return &r.limitPrice
	case 7:
		return &r.stopPrice
	case 16:
		return &r.requestID
	}
	return nil
}

// OrderResponse, and the Order in it.
func (o *order) response() []byte {
	var inner []byte
	for _, field := range []struct {
		number int
		text   string
	}{
		{1, o.id}, {2, o.clientID}, {3, o.brokerID}, {4, o.user}, {5, o.strategy}, {6, o.request.requestID},
		{7, o.request.symbol}, {8, o.request.side}, {9, o.request.orderType}, {10, o.request.timeInForce},
		{12, o.request.qty}, {14, o.request.limitPrice}, {15, o.request.stopPrice}, {19, "new"}, {20, "0"},
		{22, "0"}, {25, o.createdAt}, {26, o.createdAt},
	} {
		inner = text(inner, field.number, field.text)
	}
	body := text(nil, 1, "success")
	body = text(body, 2, o.id)
	body = text(body, 3, "the broker has the order")
	body = text(body, 4, o.request.symbol)
	body = text(body, 5, o.request.qty)
	body = text(body, 6, o.request.side)
	body = text(body, 7, "0")
	body = text(body, 8, "new")
	return text(body, 19, string(inner))
}

func failure(message string) []byte { return text(text(nil, 1, "error"), 3, message) }

func text(body []byte, number int, value string) []byte {
	if value == "" {
		return body
	}
	body = binary.AppendUvarint(body, uint64(number)<<3|2)
	body = binary.AppendUvarint(body, uint64(len(value)))
	return append(body, value...)
}
