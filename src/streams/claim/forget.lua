-- Removes a consumer from a group, only if nothing is pending with it.
--
-- XGROUP DELCONSUMER alone deletes what is pending with the consumer, and a check before it races.
--
-- KEYS[1] the stream
-- ARGV[1] the group
-- ARGV[2] the consumer
-- Returns 1 if it has been removed, 0 if entries are pending with it
-- Cost    O(log n) for n pending with the consumer
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
