#!lua flags=no-writes
-- Names the active instances that have a handler for an event type.
--
-- KEYS  1 capabilities  2 active
-- ARGV  1 event type
-- Returns the ids, in their order.
-- Cost  O(log n + m * log n) for m instances that have it.
local prefix = ARGV[1] .. ' '
-- '!' follows the space.
local members = redis.call('ZRANGEBYLEX', KEYS[1], '[' .. prefix, '(' .. ARGV[1] .. '!')
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local ids = {}
for _, member in ipairs(members) do
  local id = string.sub(member, #prefix + 1)
  if tonumber(redis.call('ZSCORE', KEYS[2], id) or 0) > now then ids[#ids + 1] = id end
end
return ids
