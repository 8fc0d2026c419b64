#!lua flags=allow-oom
-- Notes how a worker is by its own word, and tells it what it is ordered.
--
-- KEYS  1 instance hash  2 the version of the state
-- ARGV  1 the process that has the id  2 how it is (MessagePack map)
-- Returns the order (MessagePack map), or '': it has no order, or another process has the id.
-- Cost  O(1). Called again it changes nothing. Passes when memory is full: it keeps one small field.
local is = redis.call('HMGET', KEYS[1], 'status', 'process', 'order', 'mode')
if is[1] ~= 'active' or is[2] ~= ARGV[1] then return '' end
if is[4] ~= ARGV[2] then
  local clock = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'mode', ARGV[2])
  raise_version(KEYS[2], clock[1] * 1000000 + clock[2])
end
local ok, order = pcall(cmsgpack.unpack, is[3] or '\128')
if not ok or type(order) ~= 'table' or order.process ~= ARGV[1] then return '' end
return is[3]
