-- Tells what was replayed, if the broadcast is within reach. Put before the scripts that replay.
local function tell_moved(broadcast, run, by, from, stream, to, moved)
  if not broadcast or #moved == 0 then return end
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('XADD', broadcast, '*', 'type', 'operator.replayed', 'source', by, 'time', now, 'data',
    cmsgpack.pack({ run = run, by = by, from = from, stream = stream, to = to, count = #moved, entries = moved }))
end
