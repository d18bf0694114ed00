package main

import (
	"os"
	"syscall"
)

// Space is taken ahead in steps of this size, so that a sync writes data and hardly ever the file's size.
const stepBytes = 64 << 20

// A journal appends records and syncs them, many waiters to one sync.
type journal struct {
	file    *os.File
	waiting chan entry
	size    int64
	taken   int64
}

type entry struct {
	record []byte
	done   chan error
}

func openJournal(path string) (*journal, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{file: file, waiting: make(chan entry, 4096)}
	if err := j.take(); err != nil {
		return nil, err
	}
	go j.write()
	return j, nil
}

// append returns when the record is on the disk.
func (j *journal) append(record []byte) error {
	done := make(chan error, 1)
	j.waiting <- entry{record, done}
	return <-done
}

func (j *journal) write() {
	for first := range j.waiting {
		batch := []entry{first}
		bytes := append([]byte(nil), first.record...)
	gather:
		for {
			select {
			case next := <-j.waiting:
				batch = append(batch, next)
				bytes = append(bytes, next.record...)
			default:
				break gather
			}
		}
		err := j.sync(bytes)
		for _, one := range batch {
			one.done <- err
		}
	}
}

func (j *journal) sync(bytes []byte) error {
	if j.size+int64(len(bytes)) > j.taken {
		if err := j.take(); err != nil {
			return err
		}
	}
	if _, err := j.file.WriteAt(bytes, j.size); err != nil {
		return err
	}
	j.size += int64(len(bytes))
	return syscall.Fdatasync(int(j.file.Fd()))
}

func (j *journal) take() error {
	if err := syscall.Fallocate(int(j.file.Fd()), 0, j.taken, stepBytes); err != nil {
		return err
	}
	j.taken += stepBytes
	return j.file.Sync()
}
