// A handler in Go: does jobs of the type "word-count", with nothing but the official NATS client.
//
//	go run ./handler
//
// It introduces itself as a NATS micro-service, so nobody has to configure the type. Protocol: docs/protocol.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

const (
	jobType = "word-count"
	schema  = `{"type": "object", "required": ["texts"], "properties": {
		"texts": {"type": "array", "items": {"type": "string"}}, "pauseMs": {"type": "integer"}}}`
)

var queue = env("QUEUE_PREFIX", "queue")

type job struct {
	Payload struct {
		Texts   []string
		PauseMs int
	}
	Attempts   int
	Checkpoint *checkpoint
}

type checkpoint struct {
	Done  int `json:"done"`
	Words int `json:"words"`
}

// permanent is a failure that no further attempt can cure.
type permanent struct{ error }

type tryAgain struct {
	error
	after time.Duration
}

// countWords is the work. say tells progress, and keeps a checkpoint for the next run should this one be cut off.
func countWords(ctx context.Context, job job, say func(news map[string]any)) (any, error) {
	var kept checkpoint
	if job.Checkpoint != nil {
		kept = *job.Checkpoint
	}
	texts := job.Payload.Texts
	for place := kept.Done; place < len(texts); place++ {
		switch {
		case texts[place] == "":
			return nil, permanent{fmt.Errorf("text %d is empty", place)}
		case texts[place] == "busy" && job.Attempts == 1:
			return nil, tryAgain{errors.New("the dictionary is being updated"), 200 * time.Millisecond}
		}
		select {
		case <-time.After(time.Duration(job.Payload.PauseMs) * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.New("stopped")
		}
		kept = checkpoint{place + 1, kept.Words + len(strings.Fields(texts[place]))}
		say(map[string]any{
			"percent":    100 * float64(kept.Done) / float64(len(texts)),
			"message":    fmt.Sprintf("%d of %d", kept.Done, len(texts)),
			"checkpoint": kept,
		})
	}
	return map[string]int{"words": kept.Words, "attempt": job.Attempts}, nil
}

// handler keeps the runs that it has in hand.
type handler struct {
	nc      *nats.Conn
	running sync.Map // of context.CancelFunc, by job
	ended   sync.WaitGroup
}

func (h *handler) work(request micro.Request) {
	defer h.ended.Done()
	id, run := request.Headers().Get("Job-Id"), json.RawMessage(request.Headers().Get("Job-Run"))
	// When this is over, nobody wants the result any more.
	left, err := strconv.Atoi(request.Headers().Get("Job-Timeout-Ms"))
	if err != nil {
		left = 60_000
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Duration(left)*time.Millisecond)
	defer stop()
	h.running.Store(id, stop)
	defer h.running.Delete(id)

	say := func(news map[string]any) {
		news["run"] = run
		if body, err := json.Marshal(news); err == nil {
			_ = h.nc.Publish(fmt.Sprintf("%s.progress.%s.%s", queue, jobType, id), body)
		}
	}
	var job job
	if err := json.Unmarshal(request.Data(), &job); err != nil {
		_ = request.Error("400", err.Error(), nil)
		return
	}
	result, err := countWords(ctx, job, say)
	var never permanent
	var later tryAgain
	switch {
	case err == nil:
		err = request.RespondJSON(result)
	case errors.As(err, &never):
		err = request.Error("422", err.Error(), nil, micro.WithHeaders(micro.Headers{"Job-Retry": {"false"}}))
	case errors.As(err, &later):
		after := micro.Headers{"Job-Retry-After": {later.after.String()}}
		err = request.Error("503", err.Error(), nil, micro.WithHeaders(after))
	default: // whatever else: worth another attempt
		err = request.Error("500", err.Error(), nil)
	}
	if err != nil {
		log.Printf("no answer for job %s: %v", id, err)
	}
}

func (h *handler) cancel(message *nats.Msg) {
	id := message.Subject[strings.LastIndex(message.Subject, ".")+1:]
	if stop, ok := h.running.Load(id); ok {
		stop.(context.CancelFunc)()
	}
}

func main() {
	nc, err := nats.Connect(env("NATS_URL", nats.DefaultURL))
	if err != nil {
		log.Fatal(err)
	}
	h := &handler{nc: nc}
	if _, err := nc.Subscribe(fmt.Sprintf("%s.control.cancel.%s.*", queue, jobType), h.cancel); err != nil {
		log.Fatal(err)
	}
	service, err := micro.AddService(nc, micro.Config{Name: jobType, Version: "1.0.0", Description: "Counts words."})
	if err != nil {
		log.Fatal(err)
	}
	take := micro.HandlerFunc(func(request micro.Request) {
		h.ended.Add(1)
		go h.work(request) // so that several jobs run at a time
	})
	err = service.AddEndpoint(jobType, take,
		micro.WithEndpointSubject(queue+".handlers."+jobType),
		micro.WithEndpointQueueGroup("workers"),
		micro.WithEndpointMetadata(map[string]string{
			"queue.type":          jobType,
			"queue.description":   "Counts words.",
			"queue.timeout":       "1m",
			"queue.payloadSchema": schema,
		}))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready for", jobType)

	stop, _ := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	<-stop.Done()
	// No new jobs; those that run may end.
	_ = service.Stop()
	h.ended.Wait()
	_ = nc.FlushTimeout(5 * time.Second)
	nc.Close()
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
