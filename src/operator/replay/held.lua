-- Publishes pending entries again, and takes them from the consumers that hold them. Put before the scripts that do.

-- In KEYS after `key`: the claim counters of the owners. In ARGV from `at` on: the number of owners, their names, then for
-- each entry its id, the index of its owner (from 1), its delivery count, how long it must have been idle in milliseconds,
-- the number of words, the names and values of the event's fields.
--
-- Only what is still pending with the owner and the delivery count that the caller saw, and has been idle for long enough:
-- the event enters its stream again and the old delivery is acknowledged. The claim counter of every owner that lost an
-- entry is raised, so that a commit that it has under way finds out (see commit.rs). Returns {error, then for each entry
-- its id as a new event, '' for one that is not pending like that any more}, and the ids of those that were moved. After
-- an error nothing more is moved.
local function move_held(stream, group, ttl, key, at)
  local names, owners = at, tonumber(ARGV[at])
  local answer, moved, fenced = { '' }, {}, {}
  at = at + 1 + owners
  while at <= #ARGV do
    local id, owner, words = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 4])
    local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
    local added = ''
    if pending and pending[2] == ARGV[names + owner] and pending[4] == tonumber(ARGV[at + 2])
      and pending[3] >= tonumber(ARGV[at + 3]) then
      added = redis.pcall('XADD', stream, '*', unpack(ARGV, at + 5, at + 4 + words))
      if type(added) == 'table' and added.err then
        answer[1] = added.err
        break
      end
      redis.call('XACK', stream, group, id)
      fenced[owner] = true
      moved[#moved + 1] = id
    end
    answer[#answer + 1] = added
    at = at + 5 + words
  end
  for owner in pairs(fenced) do
    redis.call('INCR', KEYS[key + owner])
    redis.call('PEXPIRE', KEYS[key + owner], ttl)
  end
  return answer, moved
end
