-- Drops a consumer group of a stream, and tells so.
--
-- Atomically with the fact `operator.group_dropped`, which says what the group had not settled. The entries stay in
-- their stream, and other groups are not touched. Repeating a call drops nothing and tells nothing.
--
-- KEYS[1]  the stream
-- KEYS[2]  the broadcast, unless it lies in another slot
-- ARGV[1]  the run that the call belongs to
-- ARGV[2]  who does it
-- ARGV[3]  the group
-- Returns  {pending entries, what was delivered last}; nil if there is no such group
-- Cost     O(groups + pending entries)
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local pending, delivered
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local of = {}
  for i = 1, #group, 2 do of[group[i]] = group[i + 1] end
  if of.name == ARGV[3] then pending, delivered = of.pending, of['last-delivered-id'] end
end
if not pending then return false end
redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[3])
if KEYS[2] then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('XADD', KEYS[2], '*', 'type', 'operator.group_dropped', 'source', ARGV[2], 'time', now, 'data',
    cmsgpack.pack({ run = ARGV[1], by = ARGV[2], stream = KEYS[1], group = ARGV[3], pending = pending,
      delivered = delivered }))
end
return { pending, delivered }
