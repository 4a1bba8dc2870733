-- wrk's script for every contender: wrk ... -s load.lua URL -- REQUEST_FILE
--
-- The file returns a table:
--   method, path, headers, body   of the request
--   expect                        set of statuses that are no failure: {[200] = true}
--   refuse                        text that an answer's body must not contain, or nil
--   pause                         milliseconds that a connection waits before a request, at
--                                 random but so many on average, or nil
--   unknown                       format of a path asked for in turns with path, or nil; %d counts
-- done() prints one line of JSON, last.

local asked
local threads = {}
bad, answered = 0, 0

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  asked = dofile(args[1])
  local prepared = wrk.format(asked.method, asked.path, asked.headers, asked.body)
  if asked.unknown then
    local turn = math.random(1, 1000000) * 2
    request = function()
      turn = turn + 1
      if turn % 2 == 0 then
        return wrk.format(asked.method, string.format(asked.unknown, turn), asked.headers)
      end
      return prepared
    end
  else
    request = function() return prepared end
  end
  if asked.pause then
    math.randomseed(os.time())
    delay = function() return math.random(0, 2 * asked.pause) end
  end
end

function response(status, headers, body)
  answered = answered + 1
  if not asked.expect[status] or (asked.refuse and string.find(body, asked.refuse, 1, true)) then
    bad = bad + 1
    if bad == 1 then
      io.stderr:write(status, " ", string.sub(body, 1, 300), "\n")
    end
  end
end

function done(summary, latency, requests)
  local failed, seen = 0, 0
  for _, thread in ipairs(threads) do
    failed = failed + thread:get("bad")
    seen = seen + thread:get("answered")
  end
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "seconds": %.6f, "p50": %.4f, "p99": %.4f, "bad": %d, "checked": %d, "socket_errors": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, failed, seen,
    errors.connect + errors.read + errors.write + errors.timeout))
end
