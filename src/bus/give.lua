-- Hands a pending entry to another consumer of the group, as if it had not been delivered yet.
--
-- Atomically: only if the entry is still pending with this consumer and delivery count. Its delivery
-- count becomes 0: the receiver takes it from its own pending entries, which makes it 1. No claim
-- counter is raised, since the giver itself drops the entry.
--
-- KEYS[1] the stream
-- ARGV[1] the group
-- ARGV[2] the consumer that gives
-- ARGV[3] the consumer that receives
-- ARGV[4] the entry's id
-- ARGV[5] its delivery count
-- Returns 1 if it was handed over, 0 if it was not the giver's any more
-- Cost    O(log n) for n pending
local stream, group, id = KEYS[1], ARGV[1], ARGV[4]
local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
if not pending or pending[2] ~= ARGV[2] or pending[4] ~= tonumber(ARGV[5]) then
  return 0
end
return #redis.call('XCLAIM', stream, group, ARGV[3], 0, id, 'RETRYCOUNT', 0, 'JUSTID')
