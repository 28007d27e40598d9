// What the Go client sees, as JSON on standard output.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	agentcore "github.com/aws/aws-sdk-go-v2/service/bedrockagentcore"
	"github.com/aws/aws-sdk-go-v2/service/bedrockagentcore/types"
	"github.com/aws/smithy-go"
)

type object = map[string]any

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

var (
	ctx      = context.Background()
	arn      = os.Getenv("ARN")
	endpoint = os.Getenv("ENDPOINT")
	began    = time.Now()
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func client(address string) *agentcore.Client {
	loaded := must(config.LoadDefaultConfig(ctx))
	return agentcore.NewFromConfig(loaded, func(options *agentcore.Options) {
		options.BaseEndpoint = aws.String(address)
	})
}

func invoke(agent *agentcore.Client, payload, session string) (*agentcore.InvokeAgentRuntimeOutput, error) {
	input := &agentcore.InvokeAgentRuntimeInput{AgentRuntimeArn: aws.String(arn), Payload: []byte(payload)}
	if session != "" {
		input.RuntimeSessionId = aws.String(session)
	}
	return agent.InvokeAgentRuntime(ctx, input)
}

func stop(agent *agentcore.Client, session string, token *string) (*agentcore.StopRuntimeSessionOutput, error) {
	return agent.StopRuntimeSession(ctx, &agentcore.StopRuntimeSessionInput{
		AgentRuntimeArn: aws.String(arn), RuntimeSessionId: aws.String(session), ClientToken: token,
	})
}

func decoded(answer *agentcore.InvokeAgentRuntimeOutput) (value any) {
	body := must(io.ReadAll(answer.Response))
	must(0, json.Unmarshal(body, &value))
	return value
}

func unary(agent *agentcore.Client) object {
	session := "a-session-of-the-go-client-0123456789"
	answer := must(agent.InvokeAgentRuntime(ctx, &agentcore.InvokeAgentRuntimeInput{
		AgentRuntimeArn: aws.String(arn), Payload: []byte(`{"prompt":"hi"}`), RuntimeSessionId: aws.String(session),
		Qualifier: aws.String("DEFAULT"), TraceParent: aws.String(traceparent),
	}))
	madeUp := must(invoke(agent, `{}`, ""))
	byID := must(agent.InvokeAgentRuntime(ctx, &agentcore.InvokeAgentRuntimeInput{
		AgentRuntimeArn: aws.String(arn[strings.LastIndex(arn, "/")+1:]), AccountId: aws.String(strings.Split(arn, ":")[4]),
		Payload: []byte(`{}`),
	}))
	return object{
		"status": answer.StatusCode, "contentType": answer.ContentType, "session": *answer.RuntimeSessionId == session,
		"madeUp": len(*madeUp.RuntimeSessionId), "byId": byID.StatusCode, "traceParent": answer.TraceParent,
		"requestId": true, "seen": decoded(answer),
	}
}

func streamed(agent *agentcore.Client) object {
	answer := must(invoke(agent, `{"do":"stream"}`, ""))
	events := [][]any{}
	for lines := bufio.NewScanner(answer.Response); lines.Scan(); {
		if lines.Text() == "" {
			continue
		}
		events = append(events, []any{time.Since(began).Seconds(), lines.Text()})
		if len(events) == 1 {
			time.Sleep(310 * time.Millisecond)
			must(http.Post(endpoint+"/go", "", nil)).Body.Close()
		}
	}
	return object{"contentType": answer.ContentType, "events": events}
}

func stoppedStream(agent *agentcore.Client) object {
	session, token := "a-session-of-the-go-client-that-is-stopped", "a-client-token-of-the-go-client-0123456789"
	lines := bufio.NewScanner(must(invoke(agent, `{"do":"wait in a stream"}`, session)).Response)
	lines.Scan()
	first, statuses, rest := lines.Text(), []any{}, []string{}
	for range 2 {
		statuses = append(statuses, must(stop(agent, session, &token)).StatusCode)
	}
	for lines.Scan() {
		if lines.Text() != "" {
			rest = append(rest, lines.Text())
		}
	}
	ended := false
	for _, each := range decoded(must(invoke(agent, `{"do":"ended"}`, ""))).([]any) {
		ended = ended || each == session
	}
	_, err := stop(agent, session, nil)
	return object{"first": first, "statuses": statuses, "rest": rest, "ended": ended, "again": raised(err)}
}

// raised is the name of the type of an error that is one of the client's own, and its message.
func raised(err error) []string {
	var fault smithy.APIError
	if !errors.As(err, &fault) {
		return []string{"nothing", ""}
	}
	var generic *smithy.GenericAPIError
	if errors.As(err, &generic) {
		log.Fatal("an error that the client does not know: ", err)
	}
	return []string{fault.ErrorCode(), fault.ErrorMessage()}
}

func faults(agent *agentcore.Client) object {
	guarded, empty := client(os.Getenv("GUARDED")), client(os.Getenv("EMPTY"))
	_, validation := invoke(agent, "{", "")
	_, failed := invoke(agent, `{"do":"fail"}`, "")
	_, denied := invoke(guarded, "{}", "")
	_, unauthorized := stop(guarded, "a-session-of-the-go-client-0123456789", nil)
	_, internal := invoke(empty, "{}", "")
	_, notFound := agent.InvokeAgentRuntime(ctx, &agentcore.InvokeAgentRuntimeInput{
		AgentRuntimeArn: aws.String(strings.Replace(arn, "runtime/", "runtime/other-", 1)), Payload: []byte("{}"),
	})
	_, card := agent.GetAgentCard(ctx, &agentcore.GetAgentCardInput{AgentRuntimeArn: aws.String(arn)})
	_, command := agent.InvokeAgentRuntimeCommand(ctx, &agentcore.InvokeAgentRuntimeCommandInput{
		AgentRuntimeArn: aws.String(arn), Body: &types.InvokeAgentRuntimeCommandRequestBody{Command: aws.String("ls")},
	})
	var invalid *types.ValidationException
	if !errors.As(validation, &invalid) {
		log.Fatal(validation)
	}
	session := "a-session-of-the-go-client-that-holds-the-place"
	waiting := must(invoke(agent, `{"do":"wait in a stream"}`, session))
	_, throttled := invoke(agent, "{}", "")
	must(stop(agent, session, nil))
	must(io.ReadAll(waiting.Response))
	return object{
		"validation": raised(validation), "not found": raised(notFound), "runtime": raised(failed), "card": raised(card),
		"command": raised(command), "denied": raised(denied), "unauthorized": raised(unauthorized),
		"internal": raised(internal), "throttled": raised(throttled), "conflict": raised(conflict(agent)),
		"reason": []string{string(invalid.Reason), *invalid.FieldList[0].Name},
	}
}

// conflict is the error of a call whose session is stopped meanwhile.
func conflict(agent *agentcore.Client) error {
	session, found := "a-session-of-the-go-client-that-waits-for-its-end", make(chan error)
	go func() {
		_, err := invoke(agent, `{"do":"wait"}`, session)
		found <- err
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err := stop(agent, session, nil); err == nil {
			return <-found
		}
		if time.Now().After(deadline) {
			log.Fatal("the session never began")
		}
	}
}

func main() {
	agent := client(endpoint)
	seen := object{
		"unary": unary(agent), "stream": streamed(agent), "stopped": stoppedStream(agent), "errors": faults(agent),
	}
	must(0, json.NewEncoder(os.Stdout).Encode(seen))
}
