-- One invocation, over and over; its body is the script's argument. The last line of the output is what was counted.
function init(arguments)
  wrk.method = "POST"
  wrk.body = arguments[1]
end

function done(summary, latency, requests)
  io.write(string.format(
    '\n{"answers":%d,"microseconds":%d,"bytes":%d,"p50":%d,"p99":%d,"bad_status":%d,"broken":%d}\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
