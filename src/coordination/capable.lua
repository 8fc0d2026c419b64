#!lua flags=no-writes
-- Names the active instances that have a handler for an event type.
--
-- KEYS  1 capabilities  2 active
-- ARGV  1 event type
-- Returns {alive ids, expired ids}, each in their order: the expired ones missed their pulses and were
--       not declared lost yet.
-- Cost  O(log n + m * log n) for m instances that have it.
local prefix = ARGV[1] .. ' '
-- '!' follows the space.
local members = redis.call('ZRANGEBYLEX', KEYS[1], '[' .. prefix, '(' .. ARGV[1] .. '!')
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local alive, expired = {}, {}
for _, member in ipairs(members) do
  local id = string.sub(member, #prefix + 1)
  local expires = tonumber(redis.call('ZSCORE', KEYS[2], id) or '')
  if expires then
    local ids = expires > now and alive or expired
    ids[#ids + 1] = id
  end
end
return {alive, expired}
