-- Cancels a batch, in one step with the fact: nobody holds it any more, and nobody will. Whoever held it has an
-- old fence from now on, so nothing that it still does is committed. What was committed stays.
--
-- KEYS  1 the batch: a hash  2 its finished items  3 the batches by their last change  4 broadcast
--       5 the version of the state
-- ARGV  1 batch id  2 who cancels  3 why  4 how long a cancelled batch is kept, in ms
-- Returns {state, processor, processed, failed, total, who cancelled it, why}
--       state: cancelled (now, or before), completed (nothing was changed), unknown
--       A call that is repeated changes nothing.
-- Cost  O(log n) for n batches.
local batch, finished, batches, broadcast = unpack(KEYS, 1, 4)
local id, by, why, kept = unpack(ARGV, 1, 4)
local is = {}
local fields = {'digest', 'status', 'fence', 'processor', 'processed', 'failed', 'total', 'by', 'reason'}
for at, value in ipairs(redis.call('HMGET', batch, unpack(fields))) do is[fields[at]] = value end
if not is.digest then return {'unknown', '', '0', '0', '0', '', ''} end

local function answer(state)
  return {state, is.processor or '', is.processed or '0', is.failed or '0', is.total or '0', is.by or '', is.reason or ''}
end

if is.status ~= 'running' then return answer(is.status) end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local micros = clock[1] * 1000000 + clock[2]
raise_version(KEYS[5], micros)
is.by, is.reason = by, why
local fence = string.format('%.0f', math.max(tonumber(is.fence or 0) + 1, micros))
redis.call('HSET', batch, 'status', 'cancelled', 'fence', fence, 'expires', 0, 'updated_at', now, 'by', by,
  'reason', why)
redis.call('HDEL', batch, 'run', 'entry', 'event', 'delivery')
-- A worker that does not know of cancelling goes on with what is left, not with all of it.
redis.call('PEXPIRE', finished, kept)
redis.call('PEXPIRE', batch, kept)
redis.call('ZADD', batches, now, id)
redis.call('XADD', broadcast, '*', 'type', 'batch.cancelled', 'time', now, 'data', cmsgpack.pack({
  batch_id = id, processor_id = is.processor, items_processed = tonumber(is.processed),
  items_failed = tonumber(is.failed), total = tonumber(is.total), fence = tonumber(fence), by = by,
  reason = why}))
return answer('cancelled')
