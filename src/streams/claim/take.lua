-- Takes pending entries over from the consumers that hold them, and fences those consumers.
--
-- Atomically, for each entry: if it is still pending with the owner and the delivery count that the
-- caller saw, and has been idle for long enough, it becomes the caller's, with its delivery count
-- raised by one. The claim counter of every owner that lost an entry is raised in the same step, so
-- a commit that the owner has under way finds out (see commit.rs). That includes the caller itself:
-- the delivery that it takes over may be in the hands of another one of its tasks or processes.
-- Repeating a call takes nothing twice: the delivery count has moved.
--
-- KEYS[1]   the stream
-- KEYS[2..] the claim counters of the owners, in the order of their names in ARGV
-- ARGV[1]   the group
-- ARGV[2]   the consumer that takes
-- ARGV[3]   how long an entry must have been idle, and from when and until when by the server's clock
--           that can be judged (see silence.rs): three numbers of milliseconds. At another time nothing
--           is taken
-- ARGV[4]   how long a claim counter outlives its last change, in milliseconds
-- ARGV[5]   the number of owners, then their names, then for each entry:
--           its id, the index of its owner (from 1), its delivery count
-- Returns   for each entry taken: {id, delivery count now, 1}; 0 where the entry has been deleted from the
--           stream (it then is no longer pending for anyone). Not its fields: they may be of any size
-- Cost      O(k log n) for k entries asked for and n pending
local stream, group, me = KEYS[1], ARGV[1], ARGV[2]
local ttl, owners = ARGV[4], tonumber(ARGV[5])
local idle_needed, from, till = string.match(ARGV[3], '^(%d+) (%d+) (%d+)$')
idle_needed = tonumber(idle_needed)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if now < tonumber(from) or now > tonumber(till) then return {} end
local taken, fenced = {}, {}
for i = 6 + owners, #ARGV, 3 do
  local id, owner, count = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if pending and pending[2] == ARGV[5 + owner] and pending[4] == count and pending[3] >= idle_needed then
    local there = redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', count + 1, 'JUSTID')[1]
    taken[#taken + 1] = { id, count + 1, there and 1 or 0 }
    fenced[owner] = true
  end
end
for owner in pairs(fenced) do
  redis.call('INCR', KEYS[1 + owner])
  redis.call('PEXPIRE', KEYS[1 + owner], ttl)
end
return taken
