-- Hands a pending entry to another consumer of the group, as if it had not been delivered yet.
--
-- Atomically: only if the entry is still pending with this consumer and delivery count, and was not handed
-- over too often. Its delivery count becomes 0: the receiver takes it from its own pending entries, which
-- makes it 1. No claim counter is raised, since the giver itself drops the entry.
--
-- KEYS[1] the stream
-- KEYS[2] how often the entry was handed over; it lapses
-- ARGV[1] the group
-- ARGV[2] the consumer that gives
-- ARGV[3] the consumer that receives
-- ARGV[4] the entry's id
-- ARGV[5] its delivery count
-- ARGV[6] how often it may be handed over
-- ARGV[7] how long that is remembered, in ms
-- Returns 1 if it was handed over, 0 if it was not the giver's any more, 2 if it was too often
-- Cost    O(log n) for n pending
local stream, group, id = KEYS[1], ARGV[1], ARGV[4]
local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
if not pending or pending[2] ~= ARGV[2] or pending[4] ~= tonumber(ARGV[5]) then
  return 0
end
local times = tonumber(redis.call('GET', KEYS[2]) or 0)
if times >= tonumber(ARGV[6]) then
  return 2
end
-- First: a server that has no memory left refuses this and with it all of it, or the receiver could not be told.
redis.call('SET', KEYS[2], times + 1, 'PX', ARGV[7])
if #redis.call('XCLAIM', stream, group, ARGV[3], 0, id, 'RETRYCOUNT', 0, 'JUSTID') == 0 then
  return 0
end
return 1
