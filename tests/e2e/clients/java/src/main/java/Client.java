// What the Java client sees, as JSON on standard output.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.HttpURLConnection;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Collectors;
import software.amazon.awssdk.awscore.exception.AwsServiceException;
import software.amazon.awssdk.core.ResponseInputStream;
import software.amazon.awssdk.core.SdkBytes;
import software.amazon.awssdk.services.bedrockagentcore.BedrockAgentCoreClient;
import software.amazon.awssdk.services.bedrockagentcore.model.BedrockAgentCoreException;
import software.amazon.awssdk.services.bedrockagentcore.model.InvokeAgentRuntimeRequest;
import software.amazon.awssdk.services.bedrockagentcore.model.InvokeAgentRuntimeResponse;
import software.amazon.awssdk.services.bedrockagentcore.model.ValidationException;

public class Client {
    static final String ARN = System.getenv("ARN");
    static final String ENDPOINT = System.getenv("ENDPOINT");
    static final String TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    static BedrockAgentCoreClient client(String endpoint) {
        return BedrockAgentCoreClient.builder().endpointOverride(URI.create(endpoint)).build();
    }

    static InvokeAgentRuntimeRequest.Builder request(String payload) {
        return InvokeAgentRuntimeRequest.builder().agentRuntimeArn(ARN).payload(SdkBytes.fromUtf8String(payload));
    }

    static ResponseInputStream<InvokeAgentRuntimeResponse> invoke(BedrockAgentCoreClient agent, String payload, String session) {
        return agent.invokeAgentRuntime(request(payload).runtimeSessionId(session).build());
    }

    static int stop(BedrockAgentCoreClient agent, String session, String token) {
        return agent.stopRuntimeSession(r -> r.agentRuntimeArn(ARN).runtimeSessionId(session).clientToken(token)).statusCode();
    }

    static String text(ResponseInputStream<InvokeAgentRuntimeResponse> answer) throws Exception {
        try (answer) {
            return new String(answer.readAllBytes(), StandardCharsets.UTF_8);
        }
    }

    static BufferedReader lines(ResponseInputStream<InvokeAgentRuntimeResponse> answer) {
        return new BufferedReader(new InputStreamReader(answer, StandardCharsets.UTF_8));
    }

    static String quote(String text) {
        return text == null ? "null" : "\"" + text.replace("\\", "\\\\").replace("\"", "\\\"") + "\"";
    }

    static String list(List<String> texts) {
        return texts.stream().map(Client::quote).collect(Collectors.joining(",", "[", "]"));
    }

    interface Call {
        Object call() throws Exception;
    }

    /** The name of the exception of the client's own that a call raises, and its message. */
    static String raised(Call call) throws Exception {
        try {
            call.call();
        } catch (AwsServiceException error) {
            if (!(error instanceof BedrockAgentCoreException) || error.getClass() == BedrockAgentCoreException.class) {
                throw error;
            }
            return list(List.of(error.awsErrorDetails().errorCode(), error.awsErrorDetails().errorMessage()));
        }
        return list(List.of("nothing", ""));
    }

    static String unary(BedrockAgentCoreClient agent) throws Exception {
        String session = UUID.randomUUID().toString();
        var answer = agent.invokeAgentRuntime(
                request("{\"prompt\":\"hi\"}").runtimeSessionId(session).qualifier("DEFAULT").traceParent(TRACEPARENT).build());
        var madeUp = invoke(agent, "{}", null);
        text(madeUp);
        var byId = agent.invokeAgentRuntime(request("{}").agentRuntimeArn(ARN.substring(ARN.indexOf('/') + 1))
                .accountId(ARN.split(":")[4]).build());
        text(byId);
        var said = answer.response();
        return "{\"status\":" + said.statusCode() + ",\"contentType\":" + quote(said.contentType()) + ",\"session\":"
                + said.runtimeSessionId().equals(session) + ",\"madeUp\":" + madeUp.response().runtimeSessionId().length()
                + ",\"byId\":" + byId.response().statusCode() + ",\"traceParent\":" + quote(said.traceParent())
                + ",\"requestId\":" + (said.responseMetadata().requestId() != null) + ",\"seen\":" + text(answer) + "}";
    }

    static String streamed(BedrockAgentCoreClient agent) throws Exception {
        long began = System.nanoTime();
        var answer = invoke(agent, "{\"do\":\"stream\"}", null);
        List<String> events = new ArrayList<>();
        try (BufferedReader lines = lines(answer)) {
            for (String line; (line = lines.readLine()) != null; ) {
                if (line.isEmpty()) {
                    continue;
                }
                events.add("[" + (System.nanoTime() - began) / 1e9 + "," + quote(line) + "]");
                if (events.size() == 1) {
                    Thread.sleep(310);
                    var connection = (HttpURLConnection) URI.create(ENDPOINT + "/go").toURL().openConnection();
                    connection.setRequestMethod("POST");
                    connection.getResponseCode();
                }
            }
        }
        return "{\"contentType\":" + quote(answer.response().contentType()) + ",\"events\":[" + String.join(",", events) + "]}";
    }

    static String stoppedStream(BedrockAgentCoreClient agent) throws Exception {
        String session = UUID.randomUUID().toString();
        String token = UUID.randomUUID().toString();
        try (BufferedReader lines = lines(invoke(agent, "{\"do\":\"wait in a stream\"}", session))) {
            String first = lines.readLine();
            String statuses = "[" + stop(agent, session, token) + "," + stop(agent, session, token) + "]";
            List<String> rest = lines.lines().filter(line -> !line.isEmpty()).toList();
            boolean ended = text(invoke(agent, "{\"do\":\"ended\"}", null)).contains(session);
            return "{\"first\":" + quote(first) + ",\"statuses\":" + statuses + ",\"rest\":" + list(rest) + ",\"ended\":"
                    + ended + ",\"again\":" + raised(() -> stop(agent, session, null)) + "}";
        }
    }

    static String conflict(BedrockAgentCoreClient agent) throws Exception {
        String session = UUID.randomUUID().toString();
        var waiting = CompletableFuture.supplyAsync(() -> {
            try {
                return raised(() -> invoke(agent, "{\"do\":\"wait\"}", session));
            } catch (Exception error) {
                throw new RuntimeException(error);
            }
        });
        for (long deadline = System.nanoTime() + 60_000_000_000L; ; Thread.sleep(50)) {
            if (raised(() -> stop(agent, session, null)).startsWith("[\"nothing\"")) {
                return waiting.get();
            }
            if (System.nanoTime() > deadline) {
                throw new IllegalStateException("the session never began");
            }
        }
    }

    static String errors(BedrockAgentCoreClient agent) throws Exception {
        var guarded = client(System.getenv("GUARDED"));
        var empty = client(System.getenv("EMPTY"));
        String other = ARN.replace("runtime/", "runtime/other-");
        List<String> found = new ArrayList<>();
        found.add("\"validation\":" + raised(() -> invoke(agent, "{", null)));
        found.add("\"not found\":" + raised(() -> agent.invokeAgentRuntime(request("{}").agentRuntimeArn(other).build())));
        found.add("\"runtime\":" + raised(() -> invoke(agent, "{\"do\":\"fail\"}", null)));
        found.add("\"card\":" + raised(() -> agent.getAgentCard(r -> r.agentRuntimeArn(ARN))));
        found.add("\"denied\":" + raised(() -> invoke(guarded, "{}", null)));
        found.add("\"unauthorized\":" + raised(() -> stop(guarded, UUID.randomUUID().toString(), null)));
        found.add("\"internal\":" + raised(() -> invoke(empty, "{}", null)));
        try {
            invoke(agent, "{", null);
        } catch (ValidationException error) {
            found.add("\"reason\":" + list(List.of(error.reasonAsString(), error.fieldList().get(0).name())));
        }
        String session = UUID.randomUUID().toString();
        var waiting = invoke(agent, "{\"do\":\"wait in a stream\"}", session);
        found.add("\"throttled\":" + raised(() -> invoke(agent, "{}", null)));
        stop(agent, session, null);
        text(waiting);
        found.add("\"conflict\":" + conflict(agent));
        return "{" + String.join(",", found) + "}";
    }

    public static void main(String[] arguments) throws Exception {
        var agent = client(ENDPOINT);
        System.out.println("{\"unary\":" + unary(agent) + ",\"stream\":" + streamed(agent) + ",\"stopped\":"
                + stoppedStream(agent) + ",\"errors\":" + errors(agent) + "}");
    }
}
