// A client in Go: hands in a job, follows it and prints its result. Nothing but the official NATS client.
//
//	go run ./client word-count '{"texts": ["to be or", "not to be"]}'
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

var queue = env("QUEUE_PREFIX", "queue")

type refused struct{ Code, Detail string }

func (r refused) Error() string { return r.Code + ": " + r.Detail }

type job struct {
	Status string
	Result json.RawMessage
	Error  *string
}

// ask sends a request and decodes its answer, which may be a refusal.
func ask(nc *nats.Conn, verb string, body, answer any, timeout time.Duration) error {
	request, err := json.Marshal(body)
	if err != nil {
		return err
	}
	reply, err := nc.Request(queue+"."+verb, request, timeout)
	if err != nil {
		return err
	}
	if reply.Header.Get("Nats-Service-Error-Code") != "" {
		var problem refused
		if err := json.Unmarshal(reply.Data, &problem); err != nil {
			return err
		}
		return problem
	}
	return json.Unmarshal(reply.Data, answer)
}

func run(jobType, payload string) (bool, error) {
	nc, err := nats.Connect(env("NATS_URL", nats.DefaultURL))
	if err != nil {
		return false, err
	}
	defer nc.Close()

	// With a key the request may be repeated when no answer comes: it stays one job.
	wanted := map[string]any{"type": jobType, "payload": json.RawMessage(payload), "idempotencyKey": nuid.Next()}
	var accepted struct{ JobID string }
	if err := ask(nc, "enqueue", wanted, &accepted, 5*time.Second); err != nil {
		return false, err
	}
	fmt.Fprintln(os.Stderr, "job", accepted.JobID)
	_, err = nc.Subscribe(fmt.Sprintf("%s.events.%s.*.%s", queue, jobType, accepted.JobID), func(m *nats.Msg) {
		var event struct {
			State   string
			Percent *float64
			Message string
		}
		if json.Unmarshal(m.Data, &event) == nil && event.Percent != nil {
			fmt.Fprintf(os.Stderr, "%s %.0f %s\n", event.State, *event.Percent, event.Message)
		}
	})
	if err != nil {
		return false, err
	}
	var ended job
	wait := map[string]any{"jobId": accepted.JobID, "timeoutMs": 60_000}
	if err := ask(nc, "waitJob", wait, &ended, 65*time.Second); err != nil {
		return false, err
	}
	if ended.Status == "completed" {
		fmt.Println(string(ended.Result))
		return true, nil
	}
	text, err := json.Marshal(map[string]any{"error": ended.Error})
	fmt.Println(string(text))
	return false, err
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: client TYPE PAYLOAD")
		os.Exit(2)
	}
	done, err := run(os.Args[1], os.Args[2])
	var no refused
	switch {
	case errors.As(err, &no):
		fmt.Fprintln(os.Stderr, no)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	case !done:
		os.Exit(1)
	}
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
