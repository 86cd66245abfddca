import com.google.gson.Gson;
import com.google.gson.JsonObject;
import io.nats.client.Connection;
import io.nats.client.Nats;
import io.nats.client.impl.Headers;
import io.nats.service.Service;
import io.nats.service.ServiceEndpoint;
import io.nats.service.ServiceMessage;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * A handler in Java: does jobs of the type "word-count", with nothing but the official NATS client.
 *
 * <pre>
 * mvn -q package dependency:copy-dependencies
 * java -cp 'target/classes:target/dependency/*' JobHandler
 * </pre>
 *
 * It introduces itself as a NATS micro-service, so nobody has to configure the type. Protocol: docs/protocol.md.
 */
public final class JobHandler {
    private static final String QUEUE = System.getenv().getOrDefault("QUEUE_PREFIX", "queue");
    private static final String TYPE = "word-count";
    private static final String SCHEMA = """
        {"type": "object", "required": ["texts"], "properties": {
            "texts": {"type": "array", "items": {"type": "string"}}, "pauseMs": {"type": "integer"}}}""";
    private static final Gson GSON = new Gson();

    record Payload(List<String> texts, long pauseMs) {}

    record Checkpoint(int done, int words) {}

    record Job(Payload payload, int attempts, Checkpoint checkpoint) {}

    /** No further attempt can cure it. */
    private static final class Permanent extends Exception {
        Permanent(String message) {
            super(message);
        }
    }

    private static final class TryAgain extends Exception {
        final Duration after;

        TryAgain(String message, Duration after) {
            super(message);
            this.after = after;
        }
    }

    private interface Say {
        void say(double percent, String message, Checkpoint kept);
    }

    /** The work. {@code say} tells progress, and keeps a checkpoint for the next run should this one be cut off. */
    private static Object countWords(Job job, Say say) throws Exception {
        Checkpoint kept = job.checkpoint() == null ? new Checkpoint(0, 0) : job.checkpoint();
        List<String> texts = job.payload().texts();
        for (int place = kept.done(); place < texts.size(); place++) {
            String text = texts.get(place);
            if (text.isEmpty()) {
                throw new Permanent("text " + place + " is empty");
            }
            if (text.equals("busy") && job.attempts() == 1) {
                throw new TryAgain("the dictionary is being updated", Duration.ofMillis(200));
            }
            Thread.sleep(job.payload().pauseMs());
            int words = text.isBlank() ? 0 : text.strip().split("\\s+").length;
            kept = new Checkpoint(place + 1, kept.words() + words);
            say.say(100.0 * kept.done() / texts.size(), kept.done() + " of " + texts.size(), kept);
        }
        return Map.of("words", kept.words(), "attempt", job.attempts());
    }

    private final Connection nats;
    private final ExecutorService threads = Executors.newCachedThreadPool();
    private final ScheduledExecutorService clock = Executors.newSingleThreadScheduledExecutor();
    private final Map<String, Future<?>> running = new ConcurrentHashMap<>();

    private JobHandler(Connection nats) {
        this.nats = nats;
    }

    private void take(ServiceMessage request) {
        String id = request.getHeaders().getFirst("Job-Id");
        // A thread of its own, so that several jobs run at a time.
        Future<?> run = threads.submit(() -> work(id, request));
        running.put(id, run);
        // When this is over, nobody wants the result any more.
        long left = Long.parseLong(request.getHeaders().getFirst("Job-Timeout-Ms"));
        clock.schedule(() -> {
            running.remove(id, run);
            run.cancel(true);
        }, left, TimeUnit.MILLISECONDS);
    }

    private void work(String id, ServiceMessage request) {
        long run = Long.parseLong(request.getHeaders().getFirst("Job-Run"));
        Say say = (percent, message, kept) -> {
            JsonObject news = new JsonObject();
            news.addProperty("run", run);
            news.addProperty("percent", percent);
            news.addProperty("message", message);
            news.add("checkpoint", GSON.toJsonTree(kept));
            nats.publish(QUEUE + ".progress." + TYPE + "." + id, GSON.toJson(news).getBytes());
        };
        try {
            Job job = GSON.fromJson(new String(request.getData()), Job.class);
            request.respond(nats, GSON.toJson(countWords(job, say)));
        } catch (Permanent fault) {
            fail(request, 422, fault, "Job-Retry", "false");
        } catch (TryAgain fault) {
            fail(request, 503, fault, "Job-Retry-After", fault.after.toMillis() + "ms");
        } catch (InterruptedException stopped) {
            fail(request, 499, new Exception("stopped"), "Job-Retry", "true");
        } catch (Exception fault) { // whatever else: worth another attempt
            fail(request, 500, fault, "Job-Retry", "true");
        }
    }

    private void fail(ServiceMessage request, int code, Exception fault, String header, String value) {
        String text = String.valueOf(fault.getMessage()).replaceAll("\\s+", " ");
        Headers headers = new Headers().add(header, value);
        headers.add(ServiceMessage.NATS_SERVICE_ERROR_CODE, Integer.toString(code));
        headers.add(ServiceMessage.NATS_SERVICE_ERROR, text);
        request.respond(nats, new byte[0], headers);
    }

    private void cancel(String subject) {
        Future<?> run = running.remove(subject.substring(subject.lastIndexOf('.') + 1));
        if (run != null) {
            run.cancel(true);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Connection nats = Nats.connect(System.getenv().getOrDefault("NATS_URL", "nats://127.0.0.1:4222"));
        JobHandler handler = new JobHandler(nats);
        nats.createDispatcher(message -> handler.cancel(message.getSubject()))
            .subscribe(QUEUE + ".control.cancel." + TYPE + ".*");
        Service service = Service.builder()
            .connection(nats)
            .name(TYPE)
            .version("1.0.0")
            .description("Counts words.")
            .addServiceEndpoint(ServiceEndpoint.builder()
                .endpointName(TYPE)
                .endpointSubject(QUEUE + ".handlers." + TYPE)
                .endpointQueueGroup("workers")
                .endpointMetadata(Map.of(
                    "queue.type", TYPE,
                    "queue.description", "Counts words.",
                    "queue.timeout", "1m",
                    "queue.payloadSchema", SCHEMA))
                .handler(handler::take)
                .build())
            .build();
        service.startService();
        nats.flush(Duration.ofSeconds(5));
        System.out.println("ready for " + TYPE);

        CountDownLatch stopped = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            // No new jobs; those that run may end.
            service.stop();
            handler.clock.shutdownNow();
            handler.threads.shutdown();
            try {
                handler.threads.awaitTermination(1, TimeUnit.MINUTES);
                nats.drain(Duration.ofSeconds(5)).get();
            } catch (Exception fault) {
                System.err.println("not all could end: " + fault);
            }
            stopped.countDown();
        }));
        stopped.await();
    }
}
