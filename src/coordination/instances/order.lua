-- Orders a worker to leave, to be quiet, or to run another number of handlers at a time, in one step with the fact.
--
-- The order stands in the instance's hash and belongs to the process that has the id now: whoever has it next does
-- not follow it. The worker learns it from the fact, or with its next look, should it miss that.
--
-- KEYS  1 instance hash  2 active  3 broadcast  4 the version of the state
-- ARGV  1 id  2 'drain', 'quiet' or 'scale'  3 the concurrency, or ''  4 who orders it
-- Returns 0: ordered, or was already  1: not active  2: external, so nobody follows
-- Cost  O(log n). Called again it changes nothing.
local id, what = ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local is = redis.call('HMGET', KEYS[1], 'status', 'sealed', 'process', 'order')
if is[1] ~= 'active' or tonumber(redis.call('ZSCORE', KEYS[2], id) or 0) <= now then return 1 end
if is[2] ~= '1' or not is[3] then return 2 end
local ok, order = pcall(cmsgpack.unpack, is[4] or '\128')
if not ok or type(order) ~= 'table' or order.process ~= is[3] then order = {} end
local drain, quiet, concurrency = order.drain or false, order.quiet or false, order.concurrency
if what == 'drain' then
  drain = true
elseif what == 'quiet' then
  quiet = true
else
  quiet, concurrency = false, tonumber(ARGV[3])
end
if order.process and drain == order.drain and quiet == order.quiet and concurrency == order.concurrency then return 0 end
redis.call('HSET', KEYS[1], 'order', cmsgpack.pack({process = is[3], drain = drain, quiet = quiet,
  concurrency = concurrency, by = ARGV[4], at = now}))
raise_version(KEYS[4], clock[1] * 1000000 + clock[2])
redis.call('XADD', KEYS[3], '*', 'type', 'instance.ordered', 'subject', id, 'time', now, 'data',
  cmsgpack.pack({id = id, order = what, concurrency = tonumber(ARGV[3]), by = ARGV[4]}))
return 0
