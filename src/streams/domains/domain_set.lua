#!lua flags=allow-oom
-- Writes what is said of one domain in the place of what was said, in one step with the fact that tells it.
--
-- KEYS  1 domains  2 broadcast
-- ARGV  1 domain  2 the version that this replaces; 0: nobody used it yet  3 partitions  4 order  5 who says so
-- Returns {state, version}: 1 done, or the same is said already; 0 another version is there. Only 1 changed something.
--       What cannot be read counts as not said.
-- Cost  O(1). Passes when memory is full: operators call it, and a domain has one field.
local domain, partitions, order = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local kept = redis.call('HGET', KEYS[1], domain)
local ok, was = pcall(cmsgpack.unpack, kept or '\128')
local function whole(number, most)
  return type(number) == 'number' and number >= 1 and number <= most and number % 1 == 0
end
-- What a program would not read.
local function odd()
  if not ok or type(was) ~= 'table' or not whole(was.partitions, 1024) or not whole(was.version, 2 ^ 53 - 2) then
    return true
  end
  if was.order ~= nil and was.order ~= 'none' and was.order ~= 'subject' then return true end
  local before = was.before == nil and {} or was.before
  if type(before) ~= 'table' or #before > 10 then return true end
  local size, time = nil, 0
  for n = 1, #before + 1 do
    local one = before[n] or {partitions = was.partitions, ['until'] = tonumber(was.at) or 0}
    if type(one) ~= 'table' or not whole(one.partitions, 1024) or type(one['until']) ~= 'number' then return true end
    if size and (one.partitions <= size or one.partitions % size ~= 0) or one['until'] < time then return true end
    size, time = one.partitions, one['until']
  end
  return false
end
if kept and odd() then kept, was = false, {} end
local is = tonumber(was.version) or 0
if kept and was.partitions == partitions and (was.order or 'none') == order then return {1, is} end
if tonumber(ARGV[2]) ~= is then return {0, is} end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local before = was.before
if kept and was.partitions ~= partitions then
  before = before or {}
  before[#before + 1] = {partitions = was.partitions, ['until'] = now}
end
-- Above 1, which whoever is first to use a domain writes: what was said is told from that after a failover.
local version = math.max(is, 1) + 1
local said = {version = version, partitions = partitions, order = order, before = before, at = now, by = ARGV[5]}
redis.call('HSET', KEYS[1], domain, cmsgpack.pack(said))
said.domain = domain
redis.call('XADD', KEYS[2], '*', 'type', 'domain.changed', 'source', ARGV[5], 'time', string.format('%.0f', now),
  'data', cmsgpack.pack(said))
return {1, version}
