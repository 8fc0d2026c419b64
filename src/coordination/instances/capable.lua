#!lua flags=no-writes
-- Names active instances that have a handler for an event type.
--
-- KEYS  1 capabilities  2 active
-- ARGV  1 event type  2 how many are looked at at the most
-- Returns {alive ids, expired ids}, each in their order: the expired ones missed their pulses and were
--       not declared lost yet.
-- Cost  O(log n + instances looked at).
local prefix = ARGV[1] .. ' '
-- '!' follows the space.
local ids = redis.call('ZRANGEBYLEX', KEYS[1], '[' .. prefix, '(' .. ARGV[1] .. '!',
  'LIMIT', 0, ARGV[2])
local alive, expired = {}, {}
if #ids == 0 then return { alive, expired } end
for i, member in ipairs(ids) do ids[i] = string.sub(member, #prefix + 1) end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
for i, expires in ipairs(redis.call('ZMSCORE', KEYS[2], unpack(ids))) do
  if expires then
    local found = tonumber(expires) > now and alive or expired
    found[#found + 1] = ids[i]
  end
end
return { alive, expired }
