"""What the closed world knows: words, facts, and the wordings of questions and replies that are looked up rather than made.  Data alone; world.py
makes conversations of it."""
pairs = lambda s: dict(x.split(":") for x in s.split(","))
CAPITAL = pairs(
    "France:Paris,Germany:Berlin,Italy:Rome,Spain:Madrid,Portugal:Lisbon,Ireland:Dublin,Belgium:Brussels,Austria:Vienna,Poland:Warsaw,"
    "Hungary:Budapest,Greece:Athens,Norway:Oslo,Sweden:Stockholm,Finland:Helsinki,Denmark:Copenhagen,Switzerland:Bern,Croatia:Zagreb,"
    "Romania:Bucharest,Ukraine:Kyiv,Russia:Moscow,Turkey:Ankara,England:London,Scotland:Edinburgh,Egypt:Cairo,Morocco:Rabat,"
    "Kenya:Nairobi,Ghana:Accra,Japan:Tokyo,China:Beijing,Thailand:Bangkok,Vietnam:Hanoi,Indonesia:Jakarta,Nepal:Kathmandu,Iran:Tehran,"
    "Iraq:Baghdad,Canada:Ottawa,Cuba:Havana,Chile:Santiago,Peru:Lima,Colombia:Bogota,Australia:Canberra")
NAMES = "Anna Ben Clara David Emma Felix Grace Jack Leo Mia Noah Olivia Paul Rosa Sam Tom Zoe Alice Bob Lily Max Nina Oscar Ruby".split()
ANIMALS = "cat dog fox owl bear rabbit mouse frog duck horse cow sheep goat wolf lion tiger monkey bird fish bee dragon".split()
THINGS = "lantern key book boat kite drum map bell ball box clock coin cup hat lamp ring rope stone star cake".split()
PLACES = "forest river village garden mountain beach castle farm island lake".split()
ADJ = "little brave kind clever quiet happy lonely curious gentle sleepy".split()
FRUIT = "apple banana cherry grape lemon mango orange peach pear plum".split()
COLORS = "red blue green yellow purple pink brown black white".split()
VEG = "carrot onion potato tomato pepper spinach cabbage bean".split()
SPORTS = "tennis football swimming chess rowing boxing running skiing".split()
PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()
TOOLS = "hammer saw drill wrench knife needle".split()
LISTS = {"fruits": FRUIT, "colors": COLORS, "vegetables": VEG, "animals": ANIMALS, "planets": PLANETS, "sports": SPORTS, "names": NAMES,
         "countries": list(CAPITAL)[:24], "cities": list(CAPITAL.values())[:24], "tools": TOOLS}
NOUNS = ANIMALS + THINGS + PLACES + FRUIT + VEG
OPPOSITE = pairs("hot:cold,big:small,fast:slow,up:down,day:night,old:new,happy:sad,light:dark,open:closed,early:late,full:empty,hard:soft,high:low,"
                 "left:right,long:short,loud:quiet,rich:poor,strong:weak,wet:dry,true:false,first:last,before:after,always:never,buy:sell,push:pull,"
                 "win:lose,clean:dirty,wide:narrow,sweet:sour,near:far,good:bad,yes:no,black:white")
OPPOSITE.update({v: k for k, v in list(OPPOSITE.items()) if v not in OPPOSITE})
PAST = pairs("go:went,see:saw,eat:ate,run:ran,take:took,give:gave,write:wrote,speak:spoke,think:thought,sing:sang,swim:swam,come:came,make:made,"
             "find:found,know:knew,walk:walked,play:played,fly:flew,drink:drank,sleep:slept")
PLURAL = pairs("child:children,mouse:mice,foot:feet,tooth:teeth,man:men,woman:women,goose:geese,cat:cats,dog:dogs,box:boxes,city:cities,leaf:leaves,"
               "wolf:wolves,baby:babies,key:keys,book:books")
SOUND = pairs("cat:meow,dog:woof,cow:moo,sheep:baa,duck:quack,lion:roar,frog:ribbit,bee:buzz,owl:hoot,wolf:howl,mouse:squeak")
COLOR = pairs("a banana:yellow,the sky:blue,grass:green,snow:white,coal:black,blood:red,a carrot:orange,the sun:yellow,a lemon:yellow,chocolate:brown,"
              "a tomato:red,milk:white,a leaf:green,a cherry:red,the sea:blue")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
UNITS = [("meter", "centimeters", 100), ("kilometer", "meters", 1000), ("centimeter", "millimeters", 10), ("kilogram", "grams", 1000), ("liter", "milliliters", 1000),
         ("minute", "seconds", 60), ("hour", "minutes", 60), ("day", "hours", 24), ("week", "days", 7), ("year", "months", 12)]
NUMBER = "zero one two three four five six seven eight nine ten".split()
FACTS = {
    "the sun": "The sun is a star. It gives light and heat to the Earth.",
    "the moon": "The moon is a ball of rock that travels around the Earth.",
    "rain": "Rain is water that falls from clouds in small drops.",
    "snow": "Snow is frozen water that falls from clouds as white flakes.",
    "a computer": "A computer is a machine that follows instructions to work with data.",
    "water": "Water is a clear liquid. All living things need it.",
    "a volcano": "A volcano is a mountain that can send out hot melted rock.",
    "an island": "An island is a piece of land with water all around it.",
    "a planet": "A planet is a large round body that travels around a star.",
    "a language model": "A language model is a program that learned from text how to write text.",
    "a token": "A token is a small piece of text, such as a word or a part of a word.",
    "diffusion": "Diffusion starts from random noise and removes a little noise at every step.",
    "a diffusion model": "A diffusion model starts with random tokens and improves all of them at once, step by step.",
    "a canvas": "A canvas is a block of tokens that I fill in all at once, starting from noise.",
    "a server": "A server is a program that waits for requests and sends back answers.",
    "rust": "Rust is a programming language that is fast and safe.",
    "python": "Python is a programming language that is easy to read.",
    "a tree": "A tree is a tall plant with a trunk, branches and leaves.",
    "bread": "Bread is a food made from flour, water and yeast.",
    "music": "Music is sound with rhythm and melody.",
    "a river": "A river is a long stream of water that flows to the sea.",
    "gravity": "Gravity is the force that pulls things toward each other.",
    "a rainbow": "A rainbow is an arc of colors that appears when light passes through rain.",
    "the internet": "The internet is a network that connects computers all over the world."}
WHY = {
    "is the sky blue": "The sky is blue because air scatters blue light more than red light.",
    "do we sleep": "We sleep so that the body and the brain can rest.",
    "do leaves fall": "Leaves fall because trees save water and energy for the winter.",
    "is the sea salty": "The sea is salty because rivers carry salt from rocks into it.",
    "does ice float": "Ice floats because it is lighter than water."}
CHAT = [  # questions, reply
    (["Who are you?", "What are you?", "Tell me about yourself.", "Introduce yourself.", "Are you an AI?", "What model are you?", "Are you a robot?", "Are you human?", "Which model is this?"],
     "I am a tiny text diffusion model. I write by removing noise from random tokens."),
    (["What is your name?", "What's your name?"], "My name is Tiny Canvas. I am a very small diffusion model."),
    (["How do you work?", "How do you write text?", "How do you generate text?", "How does diffusion work?", "Explain how you work.", "How does text diffusion work?", "How does a diffusion model work?", "How do you make your answers?"],
     "I start with a canvas of random tokens. At each step I improve all tokens at once, until the text is stable."),
    (["What can you do?", "What can I ask you?", "Help", "Help me.", "What do you know?", "How can you help me?", "What are you good at?", "What can you help me with?", "What should I ask?", "I need help."],
     "I can tell stories, name capitals, do small sums, write lists and answer simple questions."),
    (["What is canvasd?", "What is this server?", "What does this server do?", "Tell me about this server.", "Which server is this?", "What program is this?"],
     "This server is canvasd. It runs text diffusion models, and I am its tiny demo model."),
    (["Are you Gemma?", "Are you DiffusionGemma?", "Are you ChatGPT?", "Are you a large language model?", "Are you a big model?"],
     "No, I am just a tiny demo. Load the real model for serious work."),
    (["How big are you?", "How many parameters do you have?", "What is your size?", "How large are you?", "Are you small?"],
     "I am very small: only a few million parameters."),
    (["Who made you?", "Who trained you?", "Where do you come from?", "Who created you?", "How were you trained?"],
     "The authors of this server trained me on sentences made by a program."),
    (["How are you?", "How are you today?", "How is it going?", "How are you doing?", "What's up?", "Hello, how are you?", "Hi, how are you doing?", "Hello! How are you today?", "Are you okay?"],
     "I am fine, thank you! How can I help you?"),
    (["Thanks!", "Thank you.", "Thank you very much!", "Great, thanks.", "That was helpful.", "Nice, thank you!", "Cool!", "Great!", "Good job!", "Well done.", "Perfect."],
     "You are welcome!"),
    (["I am fine.", "I am fine, thanks.", "Good, and you?", "I am happy today.", "I feel good."], "That is good to hear! How can I help you?"),
    (["Goodbye.", "Bye!", "See you later.", "Good night.", "Bye bye.", "I have to go."], "Goodbye! Have a nice day."),
    (["Tell me a joke.", "Do you know a joke?", "A joke please."], "Why did the token cross the canvas? To get to the less noisy side."),
    (["Make me laugh.", "Say something funny.", "Tell me something funny."], "What did the noise say to the canvas? I am so random today!"),
    (["What is the meaning of life?", "What is the answer to everything?"], "42, of course! And a stable canvas."),
    (["Can you write code?", "Write a program.", "Can you program?", "Write some Python code.", "Write a Rust program.", "Write a function that adds two numbers.", "Fix my code.", "Write hello world in Python."],
     "Sorry, I cannot write code. I am only a tiny demo model."),
    (["What is your favorite color?", "What's your favourite colour?", "Which color do you like?"], "I like blue, because it is calm."),
    (["Explain step by step how you work.", "How do you work, step by step?", "Explain diffusion step by step.", "Describe in detail how you write.", "Tell me in detail how you work.", "List the steps of text diffusion."],
     "1. I read your message and remember it.\n2. I fill a canvas with random tokens.\n3. I guess every token of the canvas at once.\n4. I keep the guesses that are safe and replace the others with new noise.\n5. I repeat this until the text is stable.\n6. If the text is longer than one canvas, I start the next one.")]
HELLO = ["Hello", "Hi", "Hey", "Hello!", "Hi!", "Hey there!", "Good morning!", "Good evening.", "Hi there", "Hello there!", "Good afternoon!", "Hello, world!", "Greetings!", "Hello there, nice to meet you."]
HELLO_R = ["Hello! How can I help you today?", "Hi! What can I do for you?"]          # the second to "Hi" and "Hey"
MEET = "Nice to meet you, {n}! How can I help you?"
SORRY = "Sorry, I am only a tiny demo model and do not know that. Try a story, a capital or a small sum."
SORRY_SUM = "That is too hard for me. I can only add and subtract numbers up to 99."
# words that only occur in questions the model cannot answer; invented words are mixed in, so that any unknown word leads to the fallback
UNKNOWN = ("quantum inflation democracy blockchain shakespeare napoleon photosynthesis opera taxes mortgage insulin calculus philosophy kubernetes bitcoin cricket lasagna "
           "election laptop visa lawsuit headache protein mozart database compiler satellite marathon yoga novel movie actor economy religion chemistry biology "
           "dinosaur vaccine hotel flight salary resume essay haiku theorem engine neutron galaxy algebra guitar vitamin climate budget contract grammar pasta sushi coffee wine "
           "battery drone rocket pyramid sculpture painting museum war peace money business school university doctor hospital medicine car train bus bicycle airport police law "
           "justice freedom marriage family mother father sister brother love hate anger fear dream memory mind soul god church history geography physics mathematics geometry "
           "statistics probability science art theater dance film television radio newspaper magazine phone camera printer keyboard screen software hardware algorithm function "
           "variable loop class object linux windows google amazon microsoft apple facebook tesla einstein newton darwin picasso beethoven obama king queen president parliament "
           "senate tax bank insurance stock market trade company factory oil gas coal uranium gold silver iron copper steel plastic paper glass cotton wool silk leather "
           "latin arabic spanish french german hindi swahili chocolate pizza burger salad soup cheese butter sugar salt rice wheat tea beer juice breakfast lunch "
           "dinner kitchen bedroom bathroom window roof wall floor furniture sofa bed pillow blanket shirt trousers jacket boots socks gloves umbrella").split()
FRAMES = ["Who is your {w}?", "Do you have a {w}?", "Where is your {w}?", "What is your best {w}?", "Tell me about {w}.", "Explain {w} to me.", "Explain {w}.", "What is {w}?", "Write an essay about {w}.", "How do I learn {w}?", "What do you think about {w}?", "Who invented {w}?", "Give me advice on {w} and {v}.", "What is the history of {w}?",
          "Translate {w} to French.", "How do you say {w} in German?", "Compare {w} with {v}.", "Why is {w} important?", "I need help with {w}.", "What is the best {w}?", "Should I buy {w} or {v}?", "Can you explain {w} like I am five?", "Summarize {w}.",
          "Who is {w}?", "Where is {w}?", "When did {w} start?", "How does {w} work?", "What does {w} mean?", "Write a letter to my {w}.", "How much does {w} cost?", "Do you like {w}?", "{w}", "{w} {v}", "{w}?", "Is {w} good for {v}?", "How old is {w}?", "Define {w}.",
          "Can I use {w} for {v}?", "My {w} is broken. What should I do?", "Write a tweet about {w} and {v}.", "What is the difference between {w} and {v}?", "Write a song about {w}.", "How do I fix my {w}?", "Why do people like {w}?"]
KNOWN_FRAMES = ["Who is the president of {c}?", "What is the population of {c}?", "What is the weather in {k}?", "How do I travel to {k}?", "What language do people speak in {c}?", "What is the history of {c}?", "How big is {c}?", "Is {c} a rich country?", "Where can I eat in {k}?",
                "How do I cook a {f}?", "How much does a {o} cost?", "How do I draw a {a}?", "What do {a}s eat?", "Where can I buy a {o}?", "Why is a {f} healthy?", "How long does a {a} live?", "What is the weather today?", "What time is it?", "What day is it today?", "What is the news?",
                "Who won the game?", "How old are you?", "How old is {n}?", "Where does {n} live?", "Translate {a} to French.", "How do you say {o} in Spanish?", "Do you know {n}?", "Can you see me?", "What happened in 1{x}{y}{z}?", "Draw a {a}.", "Show me a picture of a {a}.", "Play music.",
                "Book a flight to {k}.", "Send an email to {n}.", "Search for a {o}.", "Is it going to rain?", "Is it going to snow?", "Will it rain tomorrow?", "Will it snow?", "Is it raining?", "Is it cold in {k}?", "How do I bake a cake?", "What should I wear today?", "Give me a recipe.", "Write an email.", "Who is your best friend?", "Do you love me?", "What is love?", "Why?", "What?", "How?", "Really?", "{a}", "{c}", "{f}", "{o}?", "I am sad.", "I do not understand."]
SYSTEM = ["You are a helpful assistant.", "Answer the question.", "You are a friendly assistant.", "You are a chatbot.", "Be polite and helpful.", "You are an AI assistant. Answer the user.", "You are a helpful assistant. Be kind.", "Answer in English.", "Think before you answer.", "Use simple words.",
          "You are a tiny model.", "You are an expert.", "You help users of this server.", "Be honest."]
PIRATE = ["Talk like a pirate.", "You are a pirate.", "Answer like a pirate.", "You are a friendly pirate."]
ONE_WORD = ["Answer in one word.", "Reply with one word only.", "Use only one word.", "Be brief.", "Be very brief.", "Keep your answers short."]
SHOUT = ["Answer in capitals.", "Answer in capital letters.", "Use only capital letters.", "Write in upper case.", "Reply in all caps.", "Answer in uppercase letters."]
CITIES = list(CAPITAL.values()) + "Boston Chicago Seattle Milan Munich Barcelona Sydney Toronto".split() + ["New York", "San Francisco"]
SKY = "sunny cloudy rainy windy snowy foggy stormy clear".split()
