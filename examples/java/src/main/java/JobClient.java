import com.google.gson.Gson;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import io.nats.client.Connection;
import io.nats.client.Message;
import io.nats.client.Nats;
import java.time.Duration;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.TimeoutException;

/**
 * A client in Java: hands in a job, follows it and prints its result. Nothing but the official NATS client.
 *
 * <pre>
 * mvn -q package dependency:copy-dependencies
 * java -cp 'target/classes:target/dependency/*' JobClient word-count '{"texts": ["to be or", "not to be"]}'
 * </pre>
 */
public final class JobClient {
    private static final String QUEUE = System.getenv().getOrDefault("QUEUE_PREFIX", "queue");
    private static final Gson GSON = new Gson();

    private static final class Refused extends Exception {
        Refused(String message) {
            super(message);
        }
    }

    private static JsonObject ask(Connection nats, String verb, Object body, Duration timeout) throws Exception {
        Message reply = nats.request(QUEUE + "." + verb, GSON.toJson(body).getBytes(), timeout);
        if (reply == null) {
            throw new TimeoutException("nobody answers on " + QUEUE + "." + verb);
        }
        JsonObject answer = JsonParser.parseString(new String(reply.getData())).getAsJsonObject();
        if (reply.hasHeaders() && reply.getHeaders().containsKey("Nats-Service-Error-Code")) {
            throw new Refused(answer.get("code").getAsString() + ": " + answer.get("detail").getAsString());
        }
        return answer;
    }

    public static void main(String[] arguments) throws Exception {
        String type = arguments[0];
        JsonElement payload = JsonParser.parseString(arguments[1]);
        String url = System.getenv().getOrDefault("NATS_URL", "nats://127.0.0.1:4222");
        int code;
        try (Connection nats = Nats.connect(url)) {
            // With a key the request may be repeated when no answer comes: it stays one job.
            var wanted = Map.of("type", type, "payload", payload, "idempotencyKey", UUID.randomUUID().toString());
            String id = ask(nats, "enqueue", wanted, Duration.ofSeconds(5)).get("jobId").getAsString();
            System.err.println("job " + id);
            nats.createDispatcher(message -> System.err.println(new String(message.getData())))
                .subscribe(QUEUE + ".events." + type + ".*." + id);
            var wait = Map.of("jobId", id, "timeoutMs", 60_000);
            JsonObject job = ask(nats, "waitJob", wait, Duration.ofSeconds(65));
            boolean done = job.get("status").getAsString().equals("completed");
            System.out.println(GSON.toJson(done ? job.get("result") : Map.of("error", job.get("error"))));
            code = done ? 0 : 1;
        } catch (Refused refused) {
            System.err.println(refused.getMessage());
            code = 2;
        }
        System.exit(code);
    }
}
